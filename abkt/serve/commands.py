"""What the frontend tells a worker process. Each class is one message; `abkt.serve.messages` writes it as one line of JSON.

An `attempt_id` is the frontend's number of one attempt at a request. A request that is tried again gets another one, so a worker never
meets the same number twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from abkt.capacity import Capacity
from abkt.profile.schema import Profile
from abkt.serve.engine.sampling import Generation
from abkt.serve.messages import decode

ROLES = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker process needs to start; its only command-line argument.

    Parameters
    ----------
    name : unique among the workers of a cluster, such as p0.
    role : prefill or decode, to begin with.
    model_folder : a Hugging Face model folder.
    blocks, block_tokens : the KV pool: how many blocks, and tokens of one.
    max_batch : requests that are decoded at a time.
    core : the CPU core the process is pinned to; None leaves it unpinned.
    threads : of torch.
    device : cpu or cuda.
    host : the address a decode worker listens on.
    transport : a name of `abkt.transfer.transports.registry`.
    sockets : the folder for transports that need a socket file.
    paced : the profile.json of the machine that the worker stands for (compute=paced); empty: it computes.
    importance_window : last queries of a prompt that weigh its cells in slope order; 0: all cells weigh the same.
    calibration : the model's calibration.json; empty: none.
    layer_groups : a prompt's KV is sent in this many groups of layers, each as soon as it is computed; 1: all at once, after prefill.
    device_lock : a file that workers of one device lock while they compute; empty: they do not take turns.
    key_file : the key of the worker's transfers; empty: the one that ABKT_KEY_FILE names, or none.
    encrypt : whether transfers are encrypted, not only authenticated.
    """

    name: str
    role: str
    model_folder: str
    blocks: int
    block_tokens: int
    max_batch: int
    core: int | None = None
    threads: int = 1
    device: str = "cpu"
    host: str = "127.0.0.1"
    transport: str = "tcp"
    sockets: str = ""
    paced: str = ""
    importance_window: int = 32
    calibration: str = ""
    layer_groups: int = 1
    device_lock: str = ""
    key_file: str = ""
    encrypt: bool = False


@dataclass(frozen=True, slots=True)
class Ping:
    """Answered with Pong at once, whatever the worker computes."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Have the KV of this prompt ready (compute=paced). Answered with Prepared."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StartPrefillRun:
    """A run starts, for a prefill worker. origin_s: its time 0 on CLOCK_MONOTONIC. network: of its NIC. bitrate: a policy's configuration.
    pacing: see abkt.serve.pacing. peers: decode worker -> its address."""

    origin_s: float
    network: Capacity
    bitrate: Mapping[str, Any]
    pacing: str
    profile: Profile | None
    peers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StartDecodeRun:
    """A run starts, for a decode worker. origin_s, network: as in StartPrefillRun."""

    origin_s: float
    network: Capacity


@dataclass(frozen=True, slots=True)
class AddPeer:
    """A decode worker takes KV at this address."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class RemovePeer:
    """A decode worker has left; transfers to it fail."""

    name: str


@dataclass(frozen=True, slots=True)
class SubmitPrompt:
    """Compute a prompt's KV and send it to `destination`, where it should be usable at deadline_s of the run."""

    attempt_id: int
    tokens: tuple[int, ...]
    destination: str
    deadline_s: float
    generation: Generation


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Drop this attempt. A prefill worker answers with AttemptFailed unless the attempt is over, a decode worker with AttemptCancelled."""

    attempt_id: int


@dataclass(frozen=True, slots=True)
class WithdrawPrompts:
    """Give back the prompts that are not begun. Answered with PromptsWithdrawn."""


@dataclass(frozen=True, slots=True)
class RefinementEnded:
    """A request is over whose KV was refined while it was decoded. distortion_token_weighted: mean over its output tokens."""

    attempt_id: int
    distortion_token_weighted: float


@dataclass(frozen=True, slots=True)
class ReportIterations:
    """Asks a decode worker for the times of its iterations. Answered with DecodeIterations."""


@dataclass(frozen=True, slots=True)
class ChangeRole:
    """Take this role. The worker holds nothing of any request; it answers with Ready."""

    role: str


WorkerCommand = (
    Ping
    | Prepare
    | StartPrefillRun
    | StartDecodeRun
    | AddPeer
    | RemovePeer
    | SubmitPrompt
    | CancelAttempt
    | WithdrawPrompts
    | RefinementEnded
    | ReportIterations
    | ChangeRole
)


def decode_command(line: str | bytes) -> WorkerCommand:
    """Raises ValueError, one line, where the line is no command."""
    return cast(WorkerCommand, decode(line, get_args(WorkerCommand)))


def decode_config(line: str) -> WorkerConfig:
    """Raises ValueError, one line, where the line is no WorkerConfig."""
    return cast(WorkerConfig, decode(line, [WorkerConfig]))

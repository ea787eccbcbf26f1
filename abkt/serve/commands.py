"""The commands that the frontend sends to a worker process. Each class is one message; `abkt.serve.messages` writes it as one line of JSON.

An `attempt_id` identifies one attempt at a request. A retry gets a new id, so a worker never sees the same id twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from abkt.capacity import Capacity
from abkt.profile.schema import Profile
from abkt.serve.engine.generation import Generation
from abkt.serve.messages import decode

ROLES = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker process needs to start; its only command-line argument.

    Parameters
    ----------
    name : the worker's name, such as p0; unique in the cluster.
    role : the first role, prefill or decode.
    model_folder : a Hugging Face model folder.
    blocks, block_tokens : number of blocks in the KV pool, and tokens in one block.
    max_batch : most requests in one decode batch.
    core : the CPU core the process is pinned to; None leaves it unpinned.
    threads : number of torch threads.
    device : cpu or cuda.
    dtype : what the model computes in; empty: the model's dtype.
    host : the address a decode worker listens on.
    transport : a name in `abkt.transfer.transports.registry`.
    sockets : the folder for transports that need a socket file.
    paced : profile.json of a machine; the worker sleeps its times instead of computing (compute=paced). Empty: the worker computes.
    importance_window : number of last queries of a prompt that give its cells their weights in slope order; 0: all weights are equal.
    calibration : the model's calibration.json; empty: none.
    layer_groups : a prompt's KV is sent in this many groups of layers, each as soon as it is computed; 1: all at once, after prefill.
    device_lock : a file that the workers of one device lock while they compute; empty: no lock.
    key_file : file of the key for transfers; empty: the file that ABKT_KEY_FILE names, or no key.
    encrypt : whether transfers are encrypted as well as authenticated.
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
    dtype: str = ""
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
    """Asks whether the worker is alive. It answers with Pong at once, even during a computation."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Compute and keep the KV of this prompt (compute=paced). Answered with Prepared."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StartPrefillRun:
    """Starts a run on a prefill worker. origin_s: time 0 of the run on CLOCK_MONOTONIC. network: capacity of the worker's NIC. bitrate: a
    policy's configuration. pacing: see abkt.serve.pacing. peers: decode worker -> its address."""

    origin_s: float
    network: Capacity
    bitrate: Mapping[str, Any]
    pacing: str
    profile: Profile | None
    peers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StartDecodeRun:
    """Starts a run on a decode worker. origin_s, network: as in StartPrefillRun."""

    origin_s: float
    network: Capacity


@dataclass(frozen=True, slots=True)
class AddPeer:
    """A decode worker accepts KV at this address."""

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
    """Drop this attempt. A decode worker answers with AttemptCancelled; a prefill worker with AttemptFailed, unless the attempt is over."""

    attempt_id: int


@dataclass(frozen=True, slots=True)
class FinishAttempt:
    """The client wants no further token: a decode worker ends the output with the tokens it has, and reports AttemptFinished."""

    attempt_id: int


@dataclass(frozen=True, slots=True)
class WithdrawPrompts:
    """Give back the prompts that have not been started. Answered with PromptsWithdrawn."""


@dataclass(frozen=True, slots=True)
class RefinementEnded:
    """A request has ended, and its KV was refined while it was decoded. distortion_token_weighted: mean over its output tokens."""

    attempt_id: int
    distortion_token_weighted: float


@dataclass(frozen=True, slots=True)
class ReportIterations:
    """Asks a decode worker for the times of its iterations. Answered with DecodeIterations."""


@dataclass(frozen=True, slots=True)
class ChangeRole:
    """Take this role. The worker must hold no request's data. It answers with Ready."""

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
    | FinishAttempt
    | WithdrawPrompts
    | RefinementEnded
    | ReportIterations
    | ChangeRole
)


def decode_command(line: str | bytes) -> WorkerCommand:
    """The command in a line. Raises ValueError, one line, if the line holds no command."""
    return cast(WorkerCommand, decode(line, get_args(WorkerCommand)))


def decode_config(line: str) -> WorkerConfig:
    """The WorkerConfig in a line. Raises ValueError, one line, if the line holds none."""
    return cast(WorkerConfig, decode(line, [WorkerConfig]))

"""The reports that a worker process sends to the frontend. Each class is one message; `abkt.serve.messages` writes it as one line of JSON.

Times are seconds of the run unless a field says otherwise. attempt_id: see `abkt.serve.commands`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

from abkt.policy.view import CoderName, Curve
from abkt.serve.engine.generation import TokenLogprobs
from abkt.serve.messages import decode


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to Ping."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker now serves in this role. address: where a decode worker accepts KV; empty for a prefill worker."""

    role: str
    address: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The answer to Prepare."""


@dataclass(frozen=True, slots=True)
class PlannedTransfer:
    """How a prompt's KV is sent. encode_end_s: when encoding ended; encode_busy_s: how long it took. mode, order, depth_bits, coder: as
    decided; order and coder are empty and depth_bits is 0 for a mode without them. price: the price at the decision. estimate_bytes_per_s:
    the policy's estimate of the link; nan if it has none. pacing: the mechanism that paced the bytes. codec: name of the implementation
    that encoded."""

    encode_end_s: float
    encode_busy_s: float
    mode: str
    order: str
    depth_bits: int
    price: float
    estimate_bytes_per_s: float
    pacing: str
    codec: str
    coder: str = ""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt is computed. token, margin, logprobs: of the first output token (see Choice). transfer: None if that token is the last, so
    that no KV is sent."""

    attempt_id: int
    prefill_start_s: float
    prefill_end_s: float
    token: int
    margin: float
    transfer: PlannedTransfer | None
    logprobs: TokenLogprobs = ()


@dataclass(frozen=True, slots=True)
class CodedCurves:
    """The rate curves of a prompt that was encoded at full depth. tokens: length of the prompt. raw_bytes: size of its KV."""

    tokens: int
    coder: CoderName
    raw_bytes: int
    slope: Curve
    uniform: Curve


@dataclass(frozen=True, slots=True)
class TransferSent:
    """The decode worker has acknowledged a transfer. wire_busy_s: seconds in which its bytes passed. calls: transport calls. retries:
    connections found dead before the grant; resumes: connections that broke after it. distortion: distortion of the KV that decoding
    begins with. refining: whether better values may follow."""

    attempt_id: int
    granted_s: float
    last_byte_s: float
    acked_s: float
    wire_busy_s: float
    wire_bytes: int
    calls: int
    cut: int
    retries: int
    resumes: int
    distortion: float
    refining: bool


@dataclass(frozen=True, slots=True)
class BrokenTransfer:
    """How much had been sent of a transfer that failed after the decode worker had granted it."""

    mode: str
    wire_bytes: int
    granted_s: float
    ended_s: float
    pacing: str


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt has failed on this worker. broken: how much its transfer had sent; None if the transfer had not begun."""

    attempt_id: int
    reason: str
    broken: BrokenTransfer | None = None


@dataclass(frozen=True, slots=True)
class AttemptCancelled:
    """A decode worker has freed all memory of a cancelled attempt."""

    attempt_id: int


@dataclass(frozen=True, slots=True)
class PromptsWithdrawn:
    """The prompts that this worker had not started; it has dropped them."""

    attempt_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StreamedTokens:
    """New tokens of streamed requests, as (attempt_id, token, its logprobs)."""

    tokens: tuple[tuple[int, int, TokenLogprobs], ...]


@dataclass(frozen=True, slots=True)
class AttemptFinished:
    """A request has all its output tokens.

    received_s: when its KV was complete. expand_busy_s, decode_busy_s: seconds of expanding and decoding. decode_token_s: when this worker
    had its first token. tokens: all output tokens; the first one is the prefill worker's. margins: margins of this worker's tokens.
    logprobs: logprobs of this worker's tokens; empty if the request does not ask for them.
    distortion_start, distortion_final: distortion of the KV from which the first and the last token were decoded.
    distortion_token_weighted: mean over the tokens. swaps: (time, tokens decoded before, cut) for each time better values were written.
    refine_bytes: wire bytes of refinement after the start; refine_finish_s: when the last of them arrived; nan if there were none.
    """

    attempt_id: int
    received_s: float
    expand_end_s: float
    expand_busy_s: float
    decode_token_s: float
    decode_busy_s: float
    finish_s: float
    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    distortion_start: float
    distortion_final: float
    distortion_token_weighted: float
    swaps: tuple[tuple[float, int, int], ...]
    refine_bytes: int
    refine_finish_s: float
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodeIterations:
    """(batch size, tokens of context in the whole batch, seconds) of this run's iterations."""

    iterations: tuple[tuple[int, int, float], ...]


AttemptReport = Prefilled | TransferSent | AttemptFailed | AttemptFinished
WorkerReport = (
    Pong
    | Ready
    | Prepared
    | Prefilled
    | CodedCurves
    | TransferSent
    | AttemptFailed
    | AttemptCancelled
    | PromptsWithdrawn
    | StreamedTokens
    | AttemptFinished
    | DecodeIterations
)


def decode_report(line: str | bytes) -> WorkerReport:
    """The report in a line. Raises ValueError, one line, if the line holds no report."""
    return cast(WorkerReport, decode(line, get_args(WorkerReport)))

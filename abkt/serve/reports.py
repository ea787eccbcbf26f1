"""What a worker process tells the frontend. Each class is one message; `abkt.serve.messages` writes it as one line of JSON.

Times are seconds of the run unless a field says otherwise. attempt_id: see `abkt.serve.commands`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

from abkt.policy.view import CoderName, Curve
from abkt.serve.messages import decode


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to Ping."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker serves in this role. address: where a decode worker takes KV; empty for a prefill worker."""

    role: str
    address: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The answer to Prepare."""


@dataclass(frozen=True, slots=True)
class PlannedTransfer:
    """How a prompt's KV is sent. encode_end_s: when it was encoded; encode_busy_s: how long that took. mode, order, depth_bits, price: of
    the decision; order is empty and depth_bits 0 for a mode that has none. estimate_bytes_per_s: what the policy believes of the link; nan
    if it holds no estimate. pacing: what paced the bytes. codec: which implementation encoded."""

    encode_end_s: float
    encode_busy_s: float
    mode: str
    order: str
    depth_bits: int
    price: float
    estimate_bytes_per_s: float
    pacing: str
    codec: str


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt is computed. token, margin: the first output token, and by how much it was chosen (see Choice). transfer: None where that
    token was the last one, so that nothing is sent."""

    attempt_id: int
    prefill_start_s: float
    prefill_end_s: float
    token: int
    margin: float
    transfer: PlannedTransfer | None


@dataclass(frozen=True, slots=True)
class CodedCurves:
    """The rate curves of a prompt of `tokens` tokens that was encoded at full depth. raw_bytes: of its KV."""

    tokens: int
    coder: CoderName
    raw_bytes: int
    slope: Curve
    uniform: Curve


@dataclass(frozen=True, slots=True)
class TransferSent:
    """The decode worker has acknowledged a transfer. wire_busy_s: how long its bytes passed. calls: of the transport. retries: connections
    that were found dead before the grant; resumes: those that broke after it. distortion: of the KV that decoding begins with.
    refining: better values may follow."""

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
    """What had passed of a transfer that failed after the decode worker had granted it."""

    mode: str
    wire_bytes: int
    granted_s: float
    ended_s: float
    pacing: str


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt has failed on this worker. broken: what its transfer had sent; None where it had not begun."""

    attempt_id: int
    reason: str
    broken: BrokenTransfer | None = None


@dataclass(frozen=True, slots=True)
class AttemptCancelled:
    """A decode worker holds nothing of a cancelled attempt any more."""

    attempt_id: int


@dataclass(frozen=True, slots=True)
class PromptsWithdrawn:
    """The prompts that this worker had not begun; it has dropped them."""

    attempt_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StreamedTokens:
    """New tokens of streamed requests, as (attempt_id, token)."""

    tokens: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class AttemptFinished:
    """A request has all its output tokens.

    received_s: when its KV was complete. expand_busy_s, decode_busy_s: how long these took. decode_token_s: when the first token of this
    side was there. tokens: all outputs, with the prefill worker's first; margins: of those of this side. distortion_start, _final: of the
    KV that the first and the last token were decoded from; _token_weighted: mean over the tokens. swaps: (when, tokens decoded before,
    cut) of each swap of better values. refine_bytes: on the wire, of what followed the start; refine_finish_s: when the last of them came;
    nan without any.
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
    """Raises ValueError, one line, where the line is no report."""
    return cast(WorkerReport, decode(line, get_args(WorkerReport)))

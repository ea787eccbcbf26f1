"""The break-even test: when is compression slower than raw bytes? `Off` and the budgeted policies use it.

It compares exposed time, the part of a transfer that does not overlap with other work:

    serial      encode, then wire, then expand:  wins iff raw / B > encode + wire / B + expand,
                which is B < (1 - 1/r) S with 1/S = 1/S_enc + 1/S_dec
    pipelined   the slowest of the three:        wins iff raw / B > max(encode, wire / B, expand), which is B < min(S_enc, S_dec)
    either      loses if the raw transfer is completely hidden

B is the link's rate, r the compression ratio, S_enc and S_dec the speeds of encoding and expanding. The sums use the transfer's own bytes
and times, so no ratio has to be assumed. Raw has no loss, so it wins ties. The entropy coder needs fewer bytes and far more time than the
fixed one; the same sums show on which links it wins.

Source: KVServe (arXiv 2605.13734), theorem 1, for the serial codec; docs/design.md for exposed time.
"""

from __future__ import annotations

from collections.abc import Callable

from abkt.policy.bitrate.base import LOSSLESS, RAW
from abkt.policy.view import CoderName, Decision, TransferView


def stage_costs(view: TransferView, decision: Decision) -> tuple[float, float, float]:
    """(seconds of encoding, wire bytes still to send, seconds of expanding). The copies of a raw transfer count as its encoding.

    A decision for the entropy coder counts as one for the fixed coder; `coders.with_coder` gives the view with its bytes and seconds.
    """
    if decision.mode == "raw":
        return view.raw_s, float(view.raw_bytes), 0.0
    if decision.mode == "lossless":
        return view.lossless_encode_s, view.lossless_bytes, view.lossless_expand_s
    left_bytes = view.curve(decision.order, decision.coder).bytes[decision.cut] - view.sent_bytes
    if decision.coder == "klt" and view.klt is not None:
        return view.klt_encode_s, left_bytes, view.klt_expand_s
    return view.encode_s, left_bytes if left_bytes > 0 else 0.0, view.expand_s


def usable_s(bytes_per_s: float, view: TransferView, decision: Decision, pipelined: bool = False) -> float:
    """Seconds until the KV is usable if no other transfer uses the link. pipelined: encoding, sending and expanding overlap."""
    if decision.mode == "raw":
        return view.raw_s + view.raw_bytes / bytes_per_s
    encode_s, wire_bytes, expand_s = stage_costs(view, decision)
    wire_s = wire_bytes / bytes_per_s
    if pipelined:
        return max(encode_s, wire_s, expand_s)
    return encode_s + wire_s + expand_s


def compression_loses(bytes_per_s: float, view: TransferView, decision: Decision, pipelined: bool = False) -> bool:
    """True if raw bytes would be usable at least as early, or early enough to be hidden."""
    raw_s = usable_s(bytes_per_s, view, RAW)
    return raw_s <= max(view.hidden_s, usable_s(bytes_per_s, view, decision, pipelined))


def full_precision_instead(
    usable_s: Callable[[Decision], float],
    view: TransferView,
    asked: Decision,
    sent: Decision,
    hidden_s: float,
    deadline_s: float,
    raw_if_hidden: bool = True,
) -> Decision | None:
    """The raw or lossless decision that should replace a stream, or None to keep the stream.

    Full precision is chosen if its exposed time is no longer than that of the stream `asked`, and if it does not miss a deadline that the
    coarser stream `sent` meets.

    Parameters
    ----------
    usable_s : gives the time at which the KV is usable under a decision. It, hidden_s and deadline_s count from the same moment.
    asked : the stream that reaches the target distortion.
    sent : the stream that would be sent, which may be coarser.
    hidden_s : the time until which the request waits for other work anyway.
    deadline_s : the time at which the KV should be usable.
    raw_if_hidden : choose raw bytes if they are completely hidden, even if lossless ones are usable earlier.
    """
    best, best_s = RAW, usable_s(RAW)
    if view.lossless_bytes > 0:
        lossless_s = usable_s(LOSSLESS)
        if best_s > (max(hidden_s, lossless_s) if raw_if_hidden else lossless_s):
            best, best_s = LOSSLESS, lossless_s
    if best_s > hidden_s and best_s > usable_s(asked):
        return None
    in_time = sent.cut >= asked.cut or best_s <= max(hidden_s, deadline_s) or best_s <= usable_s(sent)
    return best if in_time else None


def stream_is_sooner(bytes_per_s: float, view: TransferView, cut: int) -> bool:
    """Whether a stream cut here in slope order is usable before full precision, and full precision is not hidden; nothing is sent yet.

    Then full_precision_instead gives None. It is the common case, and cheaper to find out here.
    """
    full_s = view.raw_s + view.raw_bytes / bytes_per_s
    if view.lossless_bytes > 0:
        lossless_s = view.lossless_encode_s + view.lossless_bytes / bytes_per_s + view.lossless_expand_s
        if full_s > max(view.hidden_s, lossless_s):
            full_s = lossless_s
    return full_s > view.hidden_s and full_s > view.encode_s + view.slope.bytes[cut] / bytes_per_s + view.expand_s


def coder_for(bytes_per_s: float, view: TransferView, cut: int) -> CoderName:
    """The coder whose stream, cut here in slope order, is usable first; the fixed coder on ties, and if only it is offered."""
    if not view.entropy_share or view.sent_bytes:
        return "fixed"
    entropy_s = view.entropy_encode_s + view.entropy_share * view.slope.bytes[cut] / bytes_per_s + view.entropy_expand_s
    return "entropy" if entropy_s < usable_s(bytes_per_s, view, Decision("stream", "slope", cut)) else "fixed"

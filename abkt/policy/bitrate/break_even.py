"""When compression loses: the break-even test that `Off` and our policies share.

Compared is exposed time, what of a transfer is not hidden behind other work:

    serial      encode, then wire, then expand:  wins iff raw / B > encode + wire / B + expand,
                which is B < (1 - 1/r) S with 1/S = 1/S_enc + 1/S_dec
    pipelined   the slowest of the three:        wins iff raw / B > max(encode, wire / B, expand), which is B < min(S_enc, S_dec)
    either      loses where raw is hidden already

The entropy form takes fewer bytes and far longer: it wins over the fixed one on links slow enough, by the same sums.
Here with this transfer's own bytes and times, so no ratio need be assumed. Raw is exact, so a tie is its.

Source: KVServe (arXiv 2605.13734), theorem 1, for the serial codec; DESIGN, section 1.
"""

from __future__ import annotations

from abkt.policy.bitrate.base import LOSSLESS, RAW
from abkt.policy.view import CoderName, Decision, TransferView


def parts(view: TransferView, decision: Decision) -> tuple[float, float, float]:
    """(seconds of encoding, wire bytes still to come, seconds of expanding). The copies of a raw transfer count as its encoding."""
    if decision.mode == "raw":
        return view.raw_s, float(view.raw_bytes), 0.0
    if decision.mode == "lossless":
        return view.lossless_encode_s, view.lossless_bytes, view.lossless_expand_s
    left_bytes = (view.slope if decision.order == "slope" else view.uniform).bytes[decision.cut] - view.sent_bytes
    return view.encode_s, left_bytes if left_bytes > 0 else 0.0, view.expand_s


def usable_s(bytes_per_s: float, view: TransferView, decision: Decision, pipelined: bool = False) -> float:
    """Seconds until KV is usable, alone on the link. pipelined: the codec works while bytes flow."""
    if decision.mode == "raw":
        return view.raw_s + view.raw_bytes / bytes_per_s
    encode_s, wire_bytes, expand_s = parts(view, decision)
    wire_s = wire_bytes / bytes_per_s
    if pipelined:
        return max(encode_s, wire_s, expand_s)
    return encode_s + wire_s + expand_s


def loses(bytes_per_s: float, view: TransferView, decision: Decision, pipelined: bool = False) -> bool:
    """True if raw bytes would be usable at least as early, or early enough to be hidden."""
    raw_s = usable_s(bytes_per_s, view, RAW)
    return raw_s <= max(view.hidden_s, usable_s(bytes_per_s, view, decision, pipelined))


def without_loss(bytes_per_s: float, view: TransferView, rival: Decision) -> Decision | None:
    """Raw or exact, the faster of them (of ties raw), where it is exposed for no longer than `rival`; None where neither is."""
    best, best_s = RAW, usable_s(bytes_per_s, view, RAW)
    if view.lossless_bytes > 0:
        exact_s = usable_s(bytes_per_s, view, LOSSLESS)
        if best_s > max(view.hidden_s, exact_s):
            best, best_s = LOSSLESS, exact_s
    return best if best_s <= view.hidden_s or best_s <= usable_s(bytes_per_s, view, rival) else None


def whole_instead(bytes_per_s: float, view: TransferView, asked: Decision, sent: Decision, left_s: float) -> Decision | None:
    """Raw or exact instead of a stream: where it is exposed no longer than what was asked for, and does not miss a deadline (left_s from
    now) that the coarser stream which would be sent keeps."""
    whole = without_loss(bytes_per_s, view, asked)
    if whole is None or sent.cut >= asked.cut:
        return whole
    return whole if usable_s(bytes_per_s, view, whole) <= max(view.hidden_s, left_s, usable_s(bytes_per_s, view, sent)) else None


def coder_for(bytes_per_s: float, view: TransferView, cut: int) -> CoderName:
    """The coder in which the slope order's cut is usable first; of ties, or where only one can be had, the fixed one."""
    if not view.entropy_share or view.sent_bytes:
        return "fixed"
    entropy_s = view.entropy_encode_s + view.entropy_share * view.slope.bytes[cut] / bytes_per_s + view.entropy_expand_s
    return "entropy" if entropy_s < usable_s(bytes_per_s, view, Decision("stream", "slope", cut)) else "fixed"

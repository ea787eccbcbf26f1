"""What bitrate policies have in common: those that look at the view alone, those that believe a link, and the bytes of a deadline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from abkt.policy.bandwidth import Bandwidth
from abkt.policy.view import CoderName, Curve, Decision, Delivered, GoodputSample, Order, Refined, TransferView

RAW, LOSSLESS = Decision("raw"), Decision("lossless")


@dataclass(slots=True)
class Blind:
    """Looks at nothing but the view."""

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        pass

    def delivered(self, now_s: float, done: Delivered) -> None:
        pass

    def refined(self, now_s: float, done: Refined) -> None:
        pass

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return math.nan


@dataclass(slots=True)
class Linked:
    """Believes an estimate of the link to its peer."""

    link: Bandwidth

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        self.link.update(now_s, sample)

    def delivered(self, now_s: float, done: Delivered) -> None:
        pass

    def refined(self, now_s: float, done: Refined) -> None:
        pass

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return self.link.mean_bytes_per_s(now_s)


def stream(view: TransferView, order: Order, cut: int, depth_bits: int = 8, behind: int = 0, coder: CoderName = "fixed") -> Decision:
    """A cut no coarser than what has left."""
    return _stream(order, cut if cut > view.sent_cut else view.sent_cut, depth_bits, behind, coder)


@lru_cache(maxsize=1 << 14)
def _stream(order: Order, cut: int, depth_bits: int, behind: int, coder: CoderName) -> Decision:
    """There are few that differ, and many are made."""
    return Decision("stream", order, cut, depth_bits, behind, coder)


def cut_behind(curve: Curve, distortion: float) -> int:
    """How far to go behind the start; 0, so nothing follows, where no distortion is asked for."""
    return 0 if math.isinf(distortion) else curve.cut_reaching(distortion)


def sending_s(now_s: float, view: TransferView) -> float:
    """Seconds that are left to a stream on the wire; the codec has its own."""
    return max(0.0, view.deadline_s - now_s - view.encode_s - view.expand_s)


def bytes_in_time(bytes_per_s: float, now_s: float, view: TransferView) -> float:
    """Wire bytes of a stream that will have left by the deadline, those that have left already among them."""
    seconds = view.deadline_s - now_s - view.encode_s - view.expand_s
    return view.sent_bytes + bytes_per_s * seconds if seconds > 0 else view.sent_bytes

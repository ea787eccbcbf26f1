"""What bitrate policies have in common: base classes with and without a link estimate, and the bytes that a deadline allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mypy_extensions import mypyc_attr

from abkt.policy.bandwidth import Bandwidth
from abkt.policy.view import CoderName, Curve, Decision, Delivered, GoodputSample, Order, Refined, TransferView
from abkt.ranges import OutOfRange, short

RAW, LOSSLESS = Decision("raw"), Decision("lossless")


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(slots=True)
class Stateless:
    """Base of policies that keep no state and decide from the view alone."""

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        pass

    def delivered(self, now_s: float, done: Delivered) -> None:
        pass

    def refined(self, now_s: float, done: Refined) -> None:
        pass

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return math.nan


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(slots=True)
class LinkEstimating:
    """Base of policies that estimate the link to their peer. link: the estimator."""

    link: Bandwidth

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        self.link.update(now_s, sample)

    def delivered(self, now_s: float, done: Delivered) -> None:
        pass

    def refined(self, now_s: float, done: Refined) -> None:
        pass

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return self.link.mean_bytes_per_s(now_s)


LEVELS = (2, 4, 8)  # bits per KV value for which the codec's speed is measured


def levels(policy: Any) -> None:
    """Check the field `bits` of a policy: one of LEVELS, or at least one of them in a list. Raises OutOfRange."""
    bits = policy.bits if isinstance(policy.bits, list | tuple) else (policy.bits,)
    if not bits or any(isinstance(number, bool) or number not in LEVELS for number in bits):
        raise OutOfRange(f"bits is {short(policy.bits)}; {'one' if bits is not policy.bits else 'some'} of 2, 4, 8 must be given")


_streams: dict[int, Decision] = {}


def stream(view: TransferView, order: Order, cut: int, depth_bits: int = 8, refine_to_cut: int = 0, coder: CoderName = "fixed") -> Decision:
    """The decision to send a stream up to `cut`, or up to the cut that was already sent if that is finer.

    Equal decisions are one object, because many are made and few differ.
    """
    if cut < view.sent_cut:
        cut = view.sent_cut
    key = cut | refine_to_cut << 16 | depth_bits << 32 | (order == "slope") << 40 | (coder == "fixed") << 41 | (coder == "klt") << 42
    known = _streams.get(key)
    if known is None:
        known = _streams[key] = Decision("stream", order, cut, depth_bits, refine_to_cut, coder)
    return known


def refinement_cut(curve: Curve, distortion: float) -> int:
    """The cut to refine to after decoding has begun: the coarsest that reaches `distortion`; 0 (no refinement) if `distortion` is inf."""
    return 0 if math.isinf(distortion) else curve.cut_reaching(distortion)


def sending_s(now_s: float, view: TransferView) -> float:
    """Seconds until the deadline that are left for the wire after encoding and expanding."""
    return max(0.0, view.deadline_s - now_s - view.encode_s - view.expand_s)


def bytes_in_time(bytes_per_s: float, now_s: float, view: TransferView) -> float:
    """Wire bytes of a stream that can be sent by the deadline, including those already sent."""
    seconds = view.deadline_s - now_s - view.encode_s - view.expand_s
    return view.sent_bytes + bytes_per_s * seconds if seconds > 0 else view.sent_bytes

"""The input of a bitrate policy (TransferView) and its answer (Decision). They hold numbers only, never frames or tensors."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from operator import neg
from typing import Literal, Protocol

Mode = Literal["raw", "lossless", "stream"]
Order = Literal["uniform", "slope"]
CoderName = Literal["fixed", "entropy", "klt"]


@dataclass(frozen=True, slots=True)
class Curve:
    """The rate-distortion curve of a stream: the bytes of each possible cut, and the distortion that is left.

    Point i is the cut after band i. Point 0 holds only what is always sent (header, full-precision tokens, metadata); every other value is
    then reconstructed as its channel's mean.

    Parameters
    ----------
    bytes : wire bytes up to and including band i, rising; at most 65 points.
    distortion : distortion that is left at cut i, falling: relative squared error or, with a calibration that predicts it, the divergence
        of the model's answers in nats a token (docs/codec.md). All curves of a view have the same unit.
    bits : mean bits per KV value of the passes up to band i.

    Raises
    ------
    ValueError : if the three differ in length or are empty.
    """

    bytes: tuple[float, ...]
    distortion: tuple[float, ...]
    bits: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.bytes) == len(self.distortion) == len(self.bits) >= 1:
            raise ValueError("a curve needs as many bytes as distortions and bits, and at least one point")

    @property
    def finest(self) -> int:
        return len(self.bytes) - 1

    def cut_within(self, budget_bytes: float) -> int:
        """The finest cut of at most budget_bytes; 0 if no cut is that small."""
        cut = bisect_right(self.bytes, budget_bytes) - 1
        return cut if cut > 0 else 0

    def cut_reaching(self, distortion: float) -> int:
        """The coarsest cut with at most this distortion; the finest if none reaches it."""
        cut, finest = bisect_left(self.distortion, -distortion, key=neg), len(self.bytes) - 1
        return cut if cut < finest else finest

    def cut_of_bits(self, bits: float) -> int:
        """The coarsest cut with at least this many bits per value; the finest if none has that many."""
        return min(self.finest, bisect_left(self.bits, bits - 1e-9))

    def cut_at_price(self, price: float) -> int:
        """The cut with the least distortion + price x bytes, the coarser one on ties: every band in it removes more than `price` a byte."""
        costs = [distortion + price * size for distortion, size in zip(self.distortion, self.bytes, strict=True)]
        return costs.index(min(costs))

    def scaled(self, factor: float) -> Curve:
        """The same curve for a transfer with `factor` times the bytes."""
        return Curve(tuple([b * factor for b in self.bytes]), self.distortion, self.bits)


@dataclass(slots=True)  # not frozen: creation would take five times as long, and the simulator makes several for each request
class TransferView:
    """One transfer, as its bitrate policy sees it. Do not change an existing view; use dataclasses.replace.

    Parameters
    ----------
    raw_bytes : bytes of the KV in the pool.
    deadline_s : when the KV should be usable, so that TTFT meets its SLO.
    slope, uniform : rate-distortion curves of the two orders: expected ones before encoding, the request's own ones after it.
    encode_s, expand_s : expected seconds of encoding and expanding that remain, at full depth.
    raw_s : seconds of copies of a raw transfer; inf once another mode was encoded, because raw is then no longer possible.
    sent_bytes, sent_cut : the bytes and the cut that were already sent.
    lossless_bytes, lossless_encode_s, lossless_expand_s : wire bytes and seconds of the lossless mode; 0 bytes: not offered.
    hidden_s : seconds from now during which the request waits for other work anyway; 0 if transfers begin after prefill.
    price : distortion that a byte must remove to be worth sending, the higher of the two ends' prices; 0: no price.
    own_slope : this request's own slope curve for 1 raw byte, before encoding; only the simulator knows it; policies that compute bounds
        use it.
    started : the promised cut has arrived and decoding may begin; what is sent from now on refines it.
    entropy_share : bytes of the entropy coder relative to the fixed coder at equal distortion; 0: not offered.
    entropy_encode_s, entropy_expand_s : seconds of the entropy coder.
    klt : curve of the klt coder, in either order; None: not offered, or the transfer is encoded. It has points of its own, so a cut of it
        is no cut of the others.
    klt_encode_s, klt_expand_s : seconds of the klt coder.
    """

    raw_bytes: int
    deadline_s: float
    slope: Curve
    uniform: Curve
    encode_s: float = 0.0
    expand_s: float = 0.0
    raw_s: float = 0.0
    sent_bytes: float = 0.0
    sent_cut: int = 0
    lossless_bytes: float = 0.0
    lossless_encode_s: float = 0.0
    lossless_expand_s: float = 0.0
    hidden_s: float = 0.0
    price: float = 0.0
    own_slope: Curve | None = None
    started: bool = False
    entropy_share: float = 0.0
    entropy_encode_s: float = 0.0
    entropy_expand_s: float = 0.0
    klt: Curve | None = None
    klt_encode_s: float = 0.0
    klt_expand_s: float = 0.0

    def curve(self, order: Order, coder: CoderName = "fixed") -> Curve:
        """The curve whose cuts a decision with this order and coder names. The entropy coder has the fixed one's, with fewer bytes."""
        if coder == "klt" and self.klt is not None:
            return self.klt
        return self.slope if order == "slope" else self.uniform


@dataclass(frozen=True, slots=True)
class Decision:
    """What to send in a transfer. Mode, order, depth and coder of the first decision hold for the whole transfer; the cut may still change.

    Parameters
    ----------
    mode : `raw`: the bytes in the pool. `lossless`: losslessly coded. `stream`: passes in `order` up to `cut`.
    order : `slope`: the passes that remove most distortion per byte come first. `uniform`: the same precision for every cell.
    cut : index of the last band to send before decoding may begin.
    depth_bits : bits per value to encode; it limits how far the stream can be refined.
    refine_to_cut : the cut to refine to after decoding has begun, while nothing more urgent waits for the link. If it is not above `cut`,
        there is no refinement.
    coder : the coder of the passes.
    """

    mode: Mode
    order: Order = "slope"
    cut: int = 0
    depth_bits: int = 8
    refine_to_cut: int = 0
    coder: CoderName = "fixed"


@dataclass(frozen=True, slots=True)
class GoodputSample:
    """Wire bytes that passed a link in duration_s of sending time, without idle time. Compression ratios play no part."""

    wire_bytes: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Delivered:
    """A complete transfer. distortion: distortion of the KV when it was complete (0: raw or lossless). decision, view: the first decision
    and its view. seconds: time of encoding and sending, without waits for earlier transfers and for memory."""

    distortion: float
    decision: Decision
    view: TransferView
    seconds: float


@dataclass(frozen=True, slots=True)
class Refined:
    """A delivered and refined transfer whose request has ended. distortion_start: when decoding began. distortion_token_weighted: mean
    over the output tokens, each with the distortion at the time it was decoded."""

    distortion_start: float
    distortion_token_weighted: float


class BitratePolicy(Protocol):
    """Chooses how a transfer is sent. There is one object per pair of nodes.

    A policy has no clock and does no I/O. The same calls give the same answers, so a run can be replayed through it. `decide` is called
    before encoding, and again whenever the cut may still change (before each frame, or when a simulated rate changes). Quotes for routing
    also call it, for transfers that may never happen. So `decide` must not change the policy's state.
    """

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        """Record bytes that passed the link to this peer."""
        ...

    def delivered(self, now_s: float, done: Delivered) -> None:
        """A transfer to this peer is complete. A pair's transfers run one after another."""
        ...

    def refined(self, now_s: float, done: Refined) -> None:
        """The refinement of a delivered transfer has ended. Not called for transfers without refinement. Calls come in any order."""
        ...

    def decide(self, now_s: float, view: TransferView) -> Decision:
        """How to send this transfer, with what is known at now_s."""
        ...

    def estimate_bytes_per_s(self, now_s: float) -> float:
        """The policy's estimate of the link, for records and quotes; nan if it has none."""
        ...

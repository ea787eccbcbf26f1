"""What a bitrate policy sees of a transfer (TransferView), and what it answers (Decision). Numbers only, never frames or tensors."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from operator import neg
from typing import Literal, Protocol

Mode = Literal["raw", "lossless", "stream"]
Order = Literal["uniform", "slope"]
CoderName = Literal["fixed", "entropy"]


@dataclass(frozen=True, slots=True)
class Curve:
    """The rate-distortion curve of a stream: what each possible cut costs and what distortion it leaves.

    Point i is the cut after band i. Point 0 holds what is always sent (header, full-precision tokens, metadata), so every other value is
    reconstructed as its channel's mean.

    Parameters
    ----------
    bytes : wire bytes up to and including band i, rising; at most 65 points.
    distortion : relative squared error that is left at this cut, falling.
    bits : mean bits per KV value of the passes up to this cut.

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
        """The finest cut of at most budget_bytes; 0 if even that is too much."""
        cut = bisect_right(self.bytes, budget_bytes) - 1
        return cut if cut > 0 else 0

    def cut_reaching(self, distortion: float) -> int:
        """The coarsest cut with at most this distortion; the finest if none reaches it."""
        cut, finest = bisect_left(self.distortion, -distortion, key=neg), len(self.bytes) - 1
        return cut if cut < finest else finest

    def cut_of_bits(self, bits: float) -> int:
        """The coarsest cut with at least this many bits per value; the finest if none has so many."""
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
    """One transfer, as its bitrate policy sees it. Not to be changed once it is made; use dataclasses.replace.

    Parameters
    ----------
    raw_bytes : KV bytes as they lie in the pool.
    deadline_s : when the KV should be usable, so that TTFT meets its SLO.
    slope, uniform : curves of the two orders: the expected ones before encoding, the request's own ones after it.
    encode_s, expand_s : expected codec seconds that are still to come, at full depth.
    raw_s : seconds of copies of a raw transfer; inf once another mode was encoded, since raw is no longer possible then.
    sent_bytes, sent_cut : what was sent already; it cannot be taken back.
    lossless_bytes, lossless_encode_s, lossless_expand_s : wire bytes and seconds of the lossless mode; 0 bytes: not offered.
    hidden_s : seconds from now in which the request waits for other work anyway; 0 while transfers begin after prefill.
    price : distortion that a byte must remove to be worth sending, the higher price of both ends; 0: no price.
    own_slope : this request's own slope curve for 1 raw byte, before encoding; only the simulator knows it, for bounds.
    started : the promised cut has arrived and decoding may begin; what is sent from now on refines it.
    entropy_share : bytes of the entropy coder relative to the fixed coder at equal distortion; 0: not offered.
    entropy_encode_s, entropy_expand_s : seconds of the entropy coder.
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

    def curve(self, order: Order) -> Curve:
        return self.slope if order == "slope" else self.uniform


@dataclass(frozen=True, slots=True)
class Decision:
    """What to send of a transfer. Mode, order, depth and coder of the first decision hold for the whole transfer; the cut may still move.

    Parameters
    ----------
    mode : `raw`: bytes as they lie in the pool. `lossless`: coded without loss. `stream`: passes in `order` up to `cut`.
    order : `slope`: most distortion removed per byte first. `uniform`: the same precision for every cell.
    cut : index of the last band to send before decoding may begin.
    depth_bits : bits per value to encode, so how far the stream can be refined.
    refine_to_cut : the cut to refine to after decoding has begun, while nothing more urgent waits for the link; none above `cut`: no
        refinement.
    coder : coder of the passes.
    """

    mode: Mode
    order: Order = "slope"
    cut: int = 0
    depth_bits: int = 8
    refine_to_cut: int = 0
    coder: CoderName = "fixed"


@dataclass(frozen=True, slots=True)
class GoodputSample:
    """Wire bytes that passed a link in duration_s of sending, without idle time; never multiplied by a compression ratio."""

    wire_bytes: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Delivered:
    """A complete transfer. distortion: at its end (0: raw or lossless). decision, view: the first decision and the view it was made on.
    seconds: of encoding and sending, without waits for earlier transfers and for memory."""

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
    before encoding, again whenever the cut may still move (before each frame; at each change of a simulated rate), and for quotes to
    routing, whose transfers may never happen. So `decide` must not change the policy's state.
    """

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        """Bytes passed the link to this peer."""
        ...

    def delivered(self, now_s: float, done: Delivered) -> None:
        """A transfer to this peer is complete. Transfers of one pair follow one another."""
        ...

    def refined(self, now_s: float, done: Refined) -> None:
        """The refinement of a delivered transfer has ended. Not called for transfers without refinement; in any order."""
        ...

    def decide(self, now_s: float, view: TransferView) -> Decision:
        """How to send this transfer, as of now_s."""
        ...

    def estimate_bytes_per_s(self, now_s: float) -> float:
        """The policy's estimate of the link, for records and quotes; nan if it has none."""
        ...

"""What a decision sees and says. Decisions hold numbers, never frames or tensors."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import neg
from typing import Literal, Protocol

Mode = Literal["raw", "lossless", "stream"]
Order = Literal["uniform", "slope"]
CoderName = Literal["fixed", "entropy"]


@dataclass(frozen=True, slots=True)
class Curve:
    """What each cut of a stream costs and leaves, point by point (at most 65 points).

    bytes: wire bytes up to and with band i, rising. distortion: what is left then, falling, relative squared error. bits: mean bits per
    KV value of the passes so far. Point 0 is what always travels: header, exact edges and metadata, so the mean alone.
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
        """The coarsest cut with at most this distortion; the finest if none has so little."""
        cut, finest = bisect_left(self.distortion, -distortion, key=neg), len(self.bytes) - 1
        return cut if cut < finest else finest

    def cut_of_bits(self, bits: float) -> int:
        """The coarsest cut with at least this many bits per value; the finest if none has so many."""
        return min(self.finest, bisect_left(self.bits, bits - 1e-9))

    def cut_worth(self, price: float) -> int:
        """The cut with the least distortion + price x bytes, of ties the coarser: as far as bands remove more than `price` a byte."""
        costs = [distortion + price * size for distortion, size in zip(self.distortion, self.bytes, strict=True)]
        return costs.index(min(costs))

    def scaled(self, factor: float) -> Curve:
        """The same curve for a transfer whose bytes are `factor` times as many."""
        return Curve(tuple([b * factor for b in self.bytes]), self.distortion, self.bits)


@dataclass(slots=True)  # not frozen, which would take five times as long to make; a model makes several for each request
class TransferView:
    """One transfer, as its bitrate policy sees it. Nobody changes one that was made.

    deadline_s: when KV should be usable for TTFT to hold its SLO. slope, uniform: the curves of the two orders (before encoding: the
    expected ones; after: this request's own). sent_bytes, sent_cut: what left already; what left cannot be taken back.
    encode_s, expand_s: expected codec time still to come at full depth, and raw_s, the same for a raw transfer (copies); inf once
    another mode is encoded, so that raw can no longer be had. lossless_bytes, lossless_encode_s, lossless_expand_s: of that mode;
    0 bytes: not to be had. entropy_share: bytes of the entropy form by those of the fixed one at equal distortion, 0: not to be had;
    and its codec times. hidden_s: from now on, seconds in which the request waits for something else anyway (none, while transfers
    begin after prefill). price: distortion that a byte must remove to be worth its place on the link, the higher of its two ends'; 0:
    none. own_slope: this request's own curve, by raw bytes, where it is known before encoding: in a model alone, for bounds. started:
    decoding may begin, the cut is promised and there; what leaves from now on refines it.
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
    """mode raw: bytes as they are. mode lossless: coded without loss, whole. mode stream: passes in `order` up to `cut`; depth_bits is how
    deep to encode, so how far it may go. behind: the cut to go on to once decoding has begun, when nothing more urgent waits for the
    link; none above `cut`: nothing follows. coder: of the passes; the first decision's stands."""

    mode: Mode
    order: Order = "slope"
    cut: int = 0
    depth_bits: int = 8
    behind: int = 0
    coder: CoderName = "fixed"


@dataclass(frozen=True, slots=True)
class GoodputSample:
    """Wire bytes that passed a link in duration_s of sending (idle time left out); never multiplied by a compression ratio."""

    wire_bytes: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Delivered:
    """A complete transfer: the distortion it ended at (0: raw or lossless), and for those who learn, the first decision, the view it was
    made on, and the seconds of encoding and sending (waits for earlier transfers and for memory left out)."""

    distortion: float
    decision: Decision
    view: TransferView
    seconds: float


@dataclass(frozen=True, slots=True)
class Refined:
    """A delivered transfer whose request has ended: the distortion it was delivered with, and its mean over the output tokens, each at
    what was there when it was decoded."""

    distortion_start: float
    distortion_token_weighted: float


class BitratePolicy(Protocol):
    """One object per peer. The same calls give the same answers, so a run can be replayed through it.

    decide is asked before encoding, and again whenever the cut may still move (before each frame; at each change of a modelled rate), and
    by routing for transfers that may never be: asking changes nothing. `mode`, `order` and `depth_bits` of the first decision stand for
    the whole transfer.
    """

    def observe(self, now_s: float, sample: GoodputSample) -> None: ...

    def delivered(self, now_s: float, done: Delivered) -> None:
        """A transfer to this peer is complete. Transfers of one peer follow one another."""
        ...

    def refined(self, now_s: float, done: Refined) -> None:
        """What followed a delivered transfer behind its start is over. Not called where nothing did; in any order."""
        ...

    def decide(self, now_s: float, view: TransferView) -> Decision: ...

    def estimate_bytes_per_s(self, now_s: float) -> float:
        """What the policy believes of the link, for the records; nan if it holds no estimate."""
        ...


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request before it is placed. hash_ids: its prompt's prefix blocks, in order; empty where nobody hashed them."""

    request_id: int
    isl: int
    osl: int
    arrival_s: float
    hash_ids: tuple[int, ...] = ()


class PrefillLoad(Protocol):
    """A prefill node as routing sees it: live attributes of a node of the model, or of the frontend's book of a real worker."""

    name: str

    @property
    def queued_s(self) -> float:
        """Expected seconds of prefill (and encoding) accepted but not done."""
        ...

    def prefill_s(self, isl: int, cached: int = 0) -> float:
        """Of a prompt of isl tokens, of which the first `cached` need not be computed."""
        ...

    def cached_tokens(self, hash_ids: tuple[int, ...]) -> int:
        """Tokens of the prompt's beginning that the node holds; 0 without a prefix cache. Asked only of prompts with hash_ids."""
        ...


class DecodeLoad(Protocol):
    """A decode node as routing sees it. kv_used: share of its KV memory taken or promised; tpot_s: its last iteration time."""

    name: str
    active: int
    kv_used: float
    tpot_s: float

    def wait_s(self, isl: int) -> float:
        """Expected wait for memory."""
        ...


class RoutingPolicy(Protocol):
    """decide returns indices into the two lists. quote_s(p, d): expected transfer seconds by the pair's bitrate policy and link."""

    def decide(
        self,
        now_s: float,
        request: RequestView,
        prefill: Sequence[PrefillLoad],
        decode: Sequence[DecodeLoad],
        quote_s: Callable[[int, int], float],
    ) -> tuple[int, int]: ...

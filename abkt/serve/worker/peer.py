"""A decode worker as a prefill worker sees it, and one transfer to it."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field, replace

from abkt.codec.stream import Stream
from abkt.policy.price import PeerPrice
from abkt.policy.view import BitratePolicy, Decision, Delivered, GoodputSample, Refined, TransferView
from abkt.serve.worker.layered import LayeredSource
from abkt.serve.worker.nic import WorkerNic
from abkt.transfer.send.outgoing import Sent
from abkt.transfer.send.sender import Sender


@dataclass(slots=True)
class DecodePeer:
    """One decode worker during one run. Times count from origin_s. The main loop and the sender's thread share the policy under a lock.

    pacing: name of the pacing, for the records. nic: this worker's NIC. told: the price that the peer has reported. starts: attempt id ->
    distortion at the start of decoding, for transfers that may be refined.
    """

    policy: BitratePolicy
    sender: Sender
    pacing: str
    nic: WorkerNic
    origin_s: float
    told: PeerPrice = field(default_factory=PeerPrice)
    starts: dict[int, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def now_s(self) -> float:
        return time.monotonic() - self.origin_s

    def decide(self, now_s: float, view: TransferView) -> Decision:
        with self.lock:
            return self.policy.decide(now_s, view)

    def estimate_bytes_per_s(self, now_s: float) -> float:
        with self.lock:
            return self.policy.estimate_bytes_per_s(now_s)

    def price_per_byte(self, now_s: float) -> float:
        """The higher of the two ends' prices."""
        with self.lock:
            there = self.told.per_byte(now_s)
        return max(self.nic.per_byte(), there)

    def on_ack(self, held_bytes: int, price: float) -> None:
        with self.lock:
            self.told.update(self.now_s(), price)

    def refined(self, attempt_id: int, distortion_token_weighted: float) -> None:
        """Tell the policy how far a request's KV was refined, once the request has ended. Other peers' attempts are ignored."""
        if (start := self.starts.pop(attempt_id, None)) is not None:
            with self.lock:
                self.policy.refined(self.now_s(), Refined(start, min(start, distortion_token_weighted)))


@dataclass(slots=True)
class OutboundTransfer:
    """One transfer and its policy's decisions. The sender's thread calls its methods.

    expected: the view before encoding, on which `decision` was made; view: the view after encoding. distortion: distortion at each cut of
    the encoded stream. encode_s, wire_busy_s: seconds spent so far. started: the bytes sent from now on are refinement. source: the source
    of a transfer in groups of layers. dropped: the frontend has cancelled the transfer and gets no report.
    """

    peer: DecodePeer
    expected: TransferView
    decision: Decision
    estimate_bytes_per_s: float
    distortion: tuple[float, ...] = (0.0,)
    encode_s: float = 0.0
    wire_busy_s: float = 0.0
    started: bool = False
    source: LayeredSource | None = None
    dropped: bool = False
    view: TransferView = field(init=False)

    def __post_init__(self) -> None:
        # After encoding, no encoding time remains, and no other mode and coder is possible.
        expected, klt = self.expected, self.decision.coder == "klt" and self.expected.klt is not None
        expand_s = expected.klt_expand_s if klt else expected.expand_s
        self.view = replace(expected, encode_s=0.0, expand_s=expand_s, raw_s=math.inf, lossless_bytes=0.0, hidden_s=0.0, klt=None)

    @classmethod
    def decided(cls, peer: DecodePeer, now_s: float, expected: TransferView) -> OutboundTransfer:
        return cls(peer, expected, peer.decide(now_s, expected), peer.estimate_bytes_per_s(now_s))

    def encoded(self, stream: Stream) -> None:
        self.view = replace(self.view, slope=stream.slope, uniform=stream.uniform)
        self.distortion = stream.curve.distortion

    def next_cut(self, clock_s: float, sent_bytes: int, sent_cut: int) -> int:
        """The cut to reach; called before every frame. Mode, order and depth stay those of the first decision."""
        if self.decision.mode != "stream":
            return 0
        decision = self._decide(clock_s, sent_bytes, sent_cut)
        # If the policy now asks for raw or lossless, it gets the finest encoded cut.
        return decision.cut if decision.mode == "stream" else len(self.distortion) - 1

    def next_refinement_cut(self, clock_s: float, sent_bytes: int, sent_cut: int) -> int:
        """The cut to refine to, once decoding may begin."""
        self.started = True
        return self._decide(clock_s, sent_bytes, sent_cut).refine_to_cut

    def next_group_cut(
        self, groups: int, index: int, stream: Stream, clock_s: float, before_bytes: int, sent_bytes: int, complete: int
    ) -> int:
        """The cut of a group's stream, on the assumption that all later groups are like it; see LayeredSource.

        Its bands are priced like those of a whole stream.
        """
        left, now_s = groups - index, clock_s - self.peer.origin_s
        slope, uniform = (
            replace(curve, bytes=tuple(before_bytes + left * size for size in curve.bytes)) for curve in (stream.slope, stream.uniform)
        )
        price = self.peer.price_per_byte(now_s) * groups / left
        view = replace(self.view, slope=slope, uniform=uniform, sent_bytes=sent_bytes, sent_cut=complete, price=price)
        decision = self.peer.decide(now_s, view)
        return decision.cut if decision.mode == "stream" else stream.curve.finest

    def on_sent(self, clock_s: float, wire_bytes: int, duration_s: float) -> None:
        if not self.started:
            self.wire_busy_s += duration_s
        now_s = clock_s - self.peer.origin_s
        self.peer.nic.passed(now_s, wire_bytes)
        with self.peer.lock:
            self.peer.policy.observe(now_s, GoodputSample(wire_bytes, duration_s))

    def delivered(self, sent: Sent) -> float:
        """Tell the policy that the transfer is complete; returns the distortion that decoding begins with."""
        peer = self.peer
        distortion = self.source.distortion() if self.source else self.distortion[sent.cut]
        if sent.refining:
            peer.starts[sent.transfer_id] = distortion
        with peer.lock:
            seconds = self.encode_s + sent.acked_s - sent.granted_s
            peer.policy.delivered(peer.now_s(), Delivered(distortion, self.decision, self.expected, seconds))
        return distortion

    def _decide(self, clock_s: float, sent_bytes: int, sent_cut: int) -> Decision:
        now_s = clock_s - self.peer.origin_s
        price = self.peer.price_per_byte(now_s)
        view = replace(self.view, sent_bytes=sent_bytes, sent_cut=sent_cut, price=price, started=self.started)
        return self.peer.decide(now_s, view)

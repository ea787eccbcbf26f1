"""The connections of a worker to its peers: one sender, and on the prefill side one bitrate policy, for each address."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from abkt.codec.stream import Stream
from abkt.policy.view import BitratePolicy, Decision, Delivered, GoodputSample, Refined, TransferView
from abkt.transfer.send.outgoing import Outgoing, Sent
from abkt.transfer.send.sender import Sender

MOST_LINKS = 256  # addresses; the one that was used longest ago is closed first


@dataclass(slots=True, eq=False)
class Link:
    """One peer. policies: by the bitrate that was asked for. The outbox's and the sender's thread share them under a lock. Times are those
    of time.monotonic."""

    address: str
    sender: Sender
    policies: dict[str, BitratePolicy] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Links:
    """Links by address; made when they are first used. Thread-safe. make_sender : address -> Sender."""

    def __init__(self, make_sender: Callable[[str], Sender]) -> None:
        self._make_sender = make_sender
        self._lock = threading.Lock()
        self._links: dict[str, Link] = {}
        self._closed = False

    def get(self, address: str) -> Link:
        """The link to an address. Raises ValueError, one line, if the links are closed."""
        with self._lock:
            if self._closed:
                raise ValueError("the server is shutting down")
            link = self._links.pop(address, None) or Link(address, self._make_sender(address))
            self._links[address] = link  # at the end: used last
            oldest = next(iter(self._links.values())) if len(self._links) > MOST_LINKS else None
            if oldest:
                del self._links[oldest.address]
        if oldest:
            oldest.sender.close()
        return link

    def close(self) -> None:
        """End all transfers, with an error, and all threads."""
        with self._lock:
            links, self._links, self._closed = list(self._links.values()), {}, True
        for link in links:
            link.sender.close()


@dataclass(slots=True, eq=False)
class SteeredTransfer:
    """The cut of one transfer while it is sent, and what its policy learns from it. The sender's thread calls its methods.

    view: the view after encoding, with the stream's own curves. decision: the first decision; mode and order stay. distortion: at each cut.
    started: what is sent refines. start_distortion: when decoding began. cancel: ends the transfer, or its refinement.
    """

    link: Link
    policy: BitratePolicy
    view: TransferView
    decision: Decision
    distortion: tuple[float, ...] = (0.0,)
    started: bool = False
    start_distortion: float = 0.0
    cancel: threading.Event = field(default_factory=threading.Event)

    def attach(self, outgoing: Outgoing) -> None:
        """Let this object steer the transfer."""
        outgoing.on_sent = self.on_sent
        self.cancel = outgoing.cancel
        if self.decision.mode == "stream":
            outgoing.next_cut = self.next_cut
            if self.decision.refine_to_cut > 0:
                outgoing.next_refinement_cut = self.next_refinement_cut

    def encoded(self, stream: Stream) -> None:
        self.distortion = stream.curve.distortion

    def next_cut(self, now_s: float, sent_bytes: int, sent_cut: int) -> int:
        decision = self._decide(sent_bytes, sent_cut)
        return decision.cut if decision.mode == "stream" else len(self.distortion) - 1

    def next_refinement_cut(self, now_s: float, sent_bytes: int, sent_cut: int) -> int:
        """The cut to refine to. Once it is reached the refinement ends, so that nothing is kept for as long as the answer is decoded."""
        self.started = True
        cut = self._decide(sent_bytes, sent_cut).refine_to_cut
        if cut <= sent_cut:
            self.cancel.set()
        return cut

    def on_sent(self, now_s: float, wire_bytes: int, duration_s: float) -> None:
        with self.link.lock:  # the link is the same, whatever was asked for
            for policy in self.link.policies.values():
                policy.observe(now_s, GoodputSample(wire_bytes, duration_s))

    def delivered(self, sent: Sent) -> None:
        """The promised cut has been acknowledged."""
        self.start_distortion = self.distortion[min(sent.cut, len(self.distortion) - 1)]
        with self.link.lock:
            done = Delivered(self.start_distortion, self.decision, self.view, sent.acked_s - sent.granted_s)
            self.policy.delivered(time.monotonic(), done)

    def refined(self, cut: int) -> None:
        """The refinement has ended. The mean over the output's tokens is not known here, so the policy is told the distortion at the start,
        which spends its budget in full."""
        with self.link.lock:
            self.policy.refined(time.monotonic(), Refined(self.start_distortion, self.start_distortion))

    def _decide(self, sent_bytes: int, sent_cut: int) -> Decision:
        view = replace(self.view, sent_bytes=sent_bytes, sent_cut=sent_cut, started=self.started)
        with self.link.lock:
            return self.policy.decide(time.monotonic(), view)

"""What holds in every run, checked while it goes and at its end: a debug run stops at the first thing that does not.

1. initiated = completed + rejected + failed
2. memory is never above what there is, never below nothing, and empty at the end; no node has anything promised to it then
3. bytes that went in came out: of each completed request, what its transfers carried is what it got; links are empty at the end
4. exposed stages sum to the end-to-end time, none is negative, and no stage worked longer than it was waited for
5. no event is in the past: a request's moments are in order, and the clock (sim.clock) refuses what is earlier than now
6. Little's law: the requests in the system, averaged over time, are their rate times their mean time in it; the first counted here at
   each arrival and end, the second from the records

Source: Little, A proof for the queuing formula L = lambda W (Operations Research 9(3), 1961).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from abkt.records import STAGES, RequestRecord, TransferRecord
from sim.node.fleet import Nodes
from sim.node.memory import KvMemory

CLOSE = 1e-6  # relative, and absolute in seconds or requests


class InvariantError(RuntimeError):
    """A fault of the model, not of its input."""


class CheckedMemory(KvMemory):
    """Memory that says when it is wrong, at the moment at which it is."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        if name == "used" and isinstance(value, int) and not 0 <= value <= self.blocks:
            raise InvariantError(f"{value} of {self.blocks} blocks are taken")
        super().__setattr__(name, value)


class Audit:
    """Counts requests where they come and go, and compares with the records in the end. request_s: of all in the system, summed up."""

    def __init__(self) -> None:
        self.requests: list[RequestRecord] = []
        self.transfers: list[TransferRecord] = []
        self.given_up_s: list[float] = []
        self.inside = 0
        self.since_s = 0.0
        self.request_s = 0.0

    def came(self, now_s: float, record: RequestRecord) -> None:
        self.requests.append(record)
        self._move(now_s, 1)

    def left(self, now_s: float) -> None:
        self._move(now_s, -1)

    def gave_up(self, now_s: float) -> None:
        self.given_up_s.append(now_s)
        self._move(now_s, -1)

    def _move(self, now_s: float, requests: int) -> None:
        if now_s < self.since_s:
            raise InvariantError(f"an event at {now_s} s comes after one at {self.since_s} s")
        self.request_s += self.inside * (now_s - self.since_s)
        self.inside += requests
        self.since_s = now_s
        if self.inside < 0:
            raise InvariantError("more requests left than came")

    def close(self, fleet: Nodes) -> None:
        """Raises InvariantError at the first law that is broken."""
        done = [r for r in self.requests if r.outcome == "completed"]
        if len(done) + sum(r.outcome in ("rejected", "failed") for r in self.requests) != len(self.requests):
            raise InvariantError("requests ended in a way that nobody knows")
        if self.inside:
            raise InvariantError(f"{self.inside} requests never left")
        _empty(fleet)
        for r in done:
            _in_order(r)
        _bytes(done, self.transfers)
        ended = sum(r.finish_s for r in done) + sum(self.given_up_s)
        request_s = ended - sum(r.arrival_s for r in self.requests)
        if not math.isclose(self.request_s, request_s, rel_tol=CLOSE, abs_tol=CLOSE * len(self.requests)):
            raise InvariantError(f"Little's law: {self.request_s} request-seconds were counted, the records say {request_s}")


def _empty(fleet: Nodes) -> None:
    for node in fleet.nodes:
        if node.memory.used or node.active or node.promised_blocks or node.due_blocks or not node.at_rest():
            left = f"{node.memory}, {node.active} requests with {node.promised_blocks} blocks promised"
            raise InvariantError(f"node {node.name} is not empty at the end: {left}")
    for link in (*fleet.links.values(), *fleet.inbound.values(), *fleet.fabric):
        if link.flows:
            raise InvariantError(f"{len(link.flows)} flows are still on link {link.name} at the end")


def _in_order(r: RequestRecord) -> None:
    exposed = [getattr(r, f"{stage}_exposed_s") for stage in STAGES]
    if not math.isclose(sum(exposed), r.e2e_s, rel_tol=CLOSE, abs_tol=CLOSE):
        raise InvariantError(f"request {r.request_id}: exposed stages sum to {sum(exposed)} s of {r.e2e_s} s")
    if min(exposed) < -CLOSE:
        raise InvariantError(f"request {r.request_id}: a stage ended before it began, by {-min(exposed)} s")
    if not r.arrival_s <= r.prefill_token_s <= r.decode_token_s <= r.finish_s:
        moments = r.arrival_s, r.prefill_token_s, r.decode_token_s, r.finish_s
        raise InvariantError(f"request {r.request_id}: its moments are out of order, {moments}")


def _bytes(done: Sequence[RequestRecord], transfers: Iterable[TransferRecord]) -> None:
    moved: dict[int, int] = defaultdict(int)
    for transfer in transfers:
        if transfer.outcome == "completed":
            moved[transfer.request_id] = transfer.wire_bytes  # of the last time, if it was placed anew
    for r in done:
        if r.wire_bytes != moved[r.request_id] and r.wire_bytes:
            raise InvariantError(f"request {r.request_id} got {r.wire_bytes} bytes, its transfers carried {moved[r.request_id]}")

"""Laws that every run must obey, checked during and after a debug run. The run stops at the first law that is broken.

1. initiated = completed + rejected + failed
2. used memory is never above its size and never below 0, and it is empty at the end; no request has memory promised then
3. bytes are conserved: a completed request received as many bytes as its transfers carried; links are empty at the end
4. exposed stages sum to the end-to-end time, and none is negative
5. no event is in the past: a request's times are in order, and the clock (sim.clock) refuses times before now
6. Little's law: the mean number of requests in the system is their rate times their mean time in it. The left side is counted here at each
   arrival and end; the right side comes from the records

Source: Little, A proof for the queuing formula L = lambda W (Operations Research 9(3), 1961).
Not modelled: nothing; this module only checks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from mypy_extensions import mypyc_attr

from abkt.records import STAGES, RequestRecord, TransferRecord
from sim.node.memory import KvMemory
from sim.nodes import Nodes

CLOSE = 1e-6  # tolerance: relative, and absolute in seconds or requests


@mypyc_attr(native_class=False)  # it inherits from a class of Python
class InvariantError(RuntimeError):
    """A bug in the simulator, not an error in its input."""


class CheckedMemory(KvMemory):
    """KV memory that raises InvariantError when more blocks are used than it has, or fewer than none."""

    __slots__ = ()

    def reserve(self, blocks: int) -> None:
        self.check(self.used + blocks)
        super().reserve(blocks)

    def release(self, blocks: int) -> None:
        self.check(self.used - blocks)
        super().release(blocks)

    def pin(self, hash_ids: tuple[int, ...]) -> None:
        super().pin(hash_ids)
        self.check(self.used)

    def check(self, used: int) -> None:
        if not 0 <= used <= self.blocks:
            raise InvariantError(f"{used} of {self.blocks} blocks are taken")


class Audit:
    """Counts requests as they arrive and end, and compares the counts with the records. request_s: summed time in the system."""

    def __init__(self) -> None:
        self.requests: list[RequestRecord] = []
        self.transfers: list[TransferRecord] = []
        self.given_up_s: list[float] = []
        self.inside = 0
        self.since_s = 0.0
        self.request_s = 0.0

    def came(self, now_s: float) -> None:
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

    def keep(self, requests: Sequence[RequestRecord], transfers: Sequence[TransferRecord]) -> None:
        """Keep records for the checks at the end."""
        self.requests += requests
        self.transfers += transfers

    def close(self, nodes: Nodes) -> None:
        """Check the records that were kept. Raises InvariantError at the first law that is broken."""
        done = [r for r in self.requests if r.outcome == "completed"]
        if len(done) + sum(r.outcome in ("rejected", "failed") for r in self.requests) != len(self.requests):
            raise InvariantError("requests ended neither completed nor rejected nor failed")
        if self.inside:
            raise InvariantError(f"{self.inside} requests never left")
        _check_empty(nodes)
        for r in done:
            _check_times(r)
        _check_bytes(done, self.transfers)
        ended = sum([r.finish_s for r in done], 0.0) + sum(self.given_up_s, 0.0)  # from 0.0, so that the compiled sum is a float
        request_s = ended - sum([r.arrival_s for r in self.requests], 0.0)
        if not math.isclose(self.request_s, request_s, rel_tol=CLOSE, abs_tol=CLOSE * len(self.requests)):
            raise InvariantError(f"Little's law: {self.request_s} request-seconds were counted, the records say {request_s}")


def _check_empty(nodes: Nodes) -> None:
    for node in nodes.all:
        held = node.reservations
        if node.memory.used or held.active or held.promised_blocks or held.due_blocks or not node.at_rest():
            left = f"{node.memory}, {held.active} requests with {held.promised_blocks} blocks promised"
            raise InvariantError(f"node {node.name} is not empty at the end: {left}")
    for link in (*nodes.links.values(), *nodes.inbound.values(), *nodes.fabric):
        if link.flows:
            raise InvariantError(f"{len(link.flows)} flows are still on link {link.name} at the end")


def _check_times(r: RequestRecord) -> None:
    exposed = [getattr(r, f"{stage}_exposed_s") for stage in STAGES]
    if not math.isclose(sum(exposed), r.e2e_s, rel_tol=CLOSE, abs_tol=CLOSE):
        raise InvariantError(f"request {r.request_id}: exposed stages sum to {sum(exposed)} s of {r.e2e_s} s")
    if min(exposed) < -CLOSE:
        raise InvariantError(f"request {r.request_id}: a stage ended before it began, by {-min(exposed)} s")
    if not r.arrival_s <= r.prefill_token_s <= r.decode_token_s <= r.finish_s:
        times = r.arrival_s, r.prefill_token_s, r.decode_token_s, r.finish_s
        raise InvariantError(f"request {r.request_id}: its times are out of order, {times}")


def _check_bytes(done: Sequence[RequestRecord], transfers: Iterable[TransferRecord]) -> None:
    moved: dict[int, int] = defaultdict(int)
    for transfer in transfers:
        if transfer.outcome == "completed":
            moved[transfer.request_id] = transfer.wire_bytes  # bytes of the last attempt
    for r in done:
        if r.wire_bytes != moved[r.request_id] and r.wire_bytes:
            raise InvariantError(f"request {r.request_id} got {r.wire_bytes} bytes, its transfers carried {moved[r.request_id]}")

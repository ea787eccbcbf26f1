"""The door of the cluster: routing chooses a pair of nodes for each request, roles may keep it on one of them, admission lets it in.

Who is to wait, waits at the door in order of arrival; whenever a request leaves, the first one asks again.

Not modelled: clients that come back after Retry-After; the time that a decision takes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from abkt.policy.admission.base import AdmissionDecision, AdmissionPolicy
from abkt.policy.roles.base import RolesPolicy
from abkt.policy.routing.base import RequestView, RoutingPolicy
from abkt.records import SLO
from sim.clock import Clock
from sim.node.fleet import Nodes
from sim.node.job import Job
from sim.node.node import Node
from sim.transfer.pair import NodePair


class RoutingQuestion:
    """A request as admission sees it (abkt.policy.admission.base.RequestEstimate)."""

    __slots__ = ("job", "now_s", "pair", "ttft_slo_s", "waited_s")

    def __init__(self, job: Job, pair: NodePair, now_s: float, ttft_slo_s: float) -> None:
        self.job, self.pair, self.now_s, self.ttft_slo_s = job, pair, now_s, ttft_slo_s
        self.waited_s = now_s - job.request.arrival_s

    def room(self) -> bool:
        return self.job.request.osl == 1 or self.pair.target.memory.can_reserve(self.pair.target.blocks_to_decode(self.job))

    def ttft_s(self) -> float:
        source, target, request = self.pair.source, self.pair.target, self.job.request
        cached = source.cached_tokens(request.hash_ids) if request.hash_ids else 0
        prompt_s = source.queued_s + source.prefill_s(request.isl, cached)
        if request.osl == 1:
            return self.waited_s + prompt_s
        sent_s = self.pair.quote_s(request.isl, request.arrival_s)
        return self.waited_s + max(prompt_s, target.wait_s(request.isl)) + sent_s + self._first_s(target)

    def local_ttft_s(self) -> float:
        target, request = self.pair.target, self.job.request
        return self.waited_s + target.wait_s(request.isl) + target.prefill_s(request.isl) + self._first_s(target)

    def _first_s(self, target: Node) -> float:
        return max(target.tpot_s, target.costs.iteration_s(1, self.job.request.isl))


class AdmissionControl:
    """lost(job, outcome, reason): called for a request that does not get in."""

    def __init__(
        self,
        clock: Clock,
        fleet: Nodes,
        routing: RoutingPolicy,
        roles: RolesPolicy | None,
        admission: AdmissionPolicy | None,
        slo: SLO,
        lost: Callable[[Job, str, str], None],
    ) -> None:
        self.clock, self.fleet, self.slo, self.lost = clock, fleet, slo, lost
        self.routing, self.roles, self.admission = routing, roles, admission
        self._asking = False
        self.waiting: deque[Job] = deque()

    def ask(self, job: Job) -> None:
        """A request has come."""
        if self.waiting or not self.let_in(job):
            self.waiting.append(job)

    def someone_left(self) -> None:
        if self._asking:  # whoever is turned away leaves, too
            return
        self._asking = True
        while self.waiting and (self.waiting[0].gone or self.let_in(self.waiting[0])):
            self.waiting.popleft()
        self._asking = False

    def close(self, reason: str) -> None:
        """Nobody gets in any more."""
        waiting, self.waiting = self.waiting, deque()
        for job in waiting:
            if not job.gone:
                self.lost(job, "failed", reason)

    def let_in(self, job: Job) -> bool:
        """In, or turned away. False: it has to wait."""
        request, fleet, now_s = job.request, self.fleet, self.clock.now
        isl, arrival_s = request.isl, request.arrival_s
        decode_tokens = isl + request.osl if request.osl > 1 else 0  # a single token comes from prefill
        prefill, decode = fleet.able(isl, decode_tokens)
        if not (prefill and decode):
            return self._nobody(job, isl, decode_tokens)

        def quote_s(p: int, d: int) -> float:
            return fleet.pair(prefill[p], decode[d]).quote_s(isl, arrival_s)

        view = RequestView(request.request_id, isl, request.osl, arrival_s, request.hash_ids)
        p, d = self.routing.decide(now_s, view, prefill, decode, quote_s)
        source, target = prefill[p], decode[d]
        where = "split" if self.roles is None else self.roles.where(now_s, view, source, target)
        pair = fleet.pair(source, target)
        reserve = False
        if self.admission is not None:
            verdict = self.admission.decide(now_s, RoutingQuestion(job, pair, now_s, self.slo.ttft_s))
            if verdict.action == "wait":
                return False
            if verdict.action == "reject":
                self.lost(job, "rejected", _reason(verdict))
                return True
            reserve = verdict.reserve
            if verdict.action == "local":
                where = "target"
        one = {"target": target, "source": source}.get(where)
        if source is target:
            one = source
        if one is not None and (one is target or isl + request.osl <= one.memory.tokens):
            self._place_on(one, job)
        else:
            self._place(pair, job, reserve)
        return True

    def _place(self, pair: NodePair, job: Job, reserve: bool) -> None:
        record, target = job.record, pair.target
        job.pair = pair
        record.prefill_node = pair.source.name
        if job.left:
            record.decode_node = target.name
            target.promise(job)
            if reserve:
                target.memory.reserve(job.decode_blocks)
                job.reserved_s = self.clock.now
        pair.source.submit(job)

    def _place_on(self, node: Node, job: Job) -> None:
        record = job.record
        job.pair, job.node = None, node
        record.prefill_node = record.decode_node = node.name
        node.promise(job)
        node.submit(job)

    def _nobody(self, job: Job, isl: int, decode_tokens: int) -> bool:
        """Rejected if it never fits; otherwise it waits until there is a node again."""
        nodes = self.fleet.nodes
        for role, tokens in (("prefill", isl), ("decode", decode_tokens)):
            can = self.fleet.may_become(role)
            most = max((node.memory.tokens for node in can), default=0)
            if tokens > most and (can or not nodes):
                self.lost(job, "rejected", f"needs {tokens} tokens of KV; the largest {role} node holds {most}")
                return True
        return False


def _reason(verdict: AdmissionDecision) -> str:
    retry = f"; retry after {verdict.retry_after_s:.3g} s" if 0 < verdict.retry_after_s < math.inf else ""
    return f"{verdict.reason}{retry}"

"""Admission: routing chooses a pair of nodes for a request, the roles policy may keep it on one of them, the admission policy admits it.

Requests that the policy makes wait are admitted in order of arrival. Whenever a request leaves the cluster, the policy is asked again about
the first one that waits.

Not modelled: clients that come back after Retry-After; the time that a decision takes. The real frontend shows routing only the nodes with
free memory; here a request waits for the node that routing has chosen.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from abkt.policy.admission.base import AdmissionDecision, AdmissionPolicy
from abkt.policy.roles.base import RolesPolicy
from abkt.policy.routing.base import RequestView, RoutingPolicy
from abkt.records import SLO
from sim.job import Job
from sim.node.node import Node
from sim.nodes import Nodes
from sim.timers import Timers
from sim.transfer.pair import NodePair


class SimulatedApplicant:
    """A request as the admission policy sees it (abkt.policy.admission.base.RequestEstimate)."""

    __slots__ = ("job", "now_s", "pair", "ttft_slo_s", "waited_s")

    def __init__(self, job: Job, pair: NodePair, now_s: float, ttft_slo_s: float) -> None:
        self.job, self.pair, self.now_s, self.ttft_slo_s = job, pair, now_s, ttft_slo_s
        self.waited_s = now_s - job.request.arrival_s

    def room(self) -> bool:
        target = self.pair.target
        return self.job.request.osl == 1 or target.memory.can_reserve(target.reservations.blocks_to_decode(self.job))

    def ttft_s(self) -> float:
        source, target, request = self.pair.source, self.pair.target, self.job.request
        cached = source.cached_tokens(request.hash_ids) if request.hash_ids else 0
        prompt_s = source.queued_s + source.prefill_s(request.isl, cached)
        if request.osl == 1:
            return self.waited_s + prompt_s
        sent_s = self.pair.quote_s(request.isl, request.arrival_s)
        return self.waited_s + max(prompt_s, target.wait_s(request.isl)) + sent_s + self._first_iteration_s(target)

    def local_ttft_s(self) -> float:
        target, request = self.pair.target, self.job.request
        return self.waited_s + target.wait_s(request.isl) + target.prefill_s(request.isl) + self._first_iteration_s(target)

    def _first_iteration_s(self, target: Node) -> float:
        return max(target.tpot_s, target.costs.iteration_s(1, self.job.request.isl))


class AdmissionControl:
    """waiting: requests that are not admitted yet. lost(job, outcome, reason): called for a request that will never be admitted."""

    def __init__(
        self,
        clock: Timers,
        nodes: Nodes,
        routing: RoutingPolicy,
        roles: RolesPolicy | None,
        admission: AdmissionPolicy | None,
        slo: SLO,
        lost: Callable[[Job, str, str], None],
    ) -> None:
        self.clock, self.nodes, self.slo, self.lost = clock, nodes, slo, lost
        self.routing, self.roles, self.admission = routing, roles, admission
        self._admitting = False
        self.waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """A request has arrived, or starts over."""
        if self.waiting or not self.admit(job):
            self.waiting.append(job)

    def admit_waiting(self) -> None:
        """A request has left the cluster, or a node may be given more work."""
        if self._admitting:  # rejecting a request also calls this method
            return
        self._admitting = True
        while self.waiting and (self.waiting[0].aborted or self.admit(self.waiting[0])):
            self.waiting.popleft()
        self._admitting = False

    def close(self, reason: str) -> None:
        """Fail all waiting requests, because none of them can be admitted any more."""
        waiting, self.waiting = self.waiting, deque()
        for job in waiting:
            if not job.aborted:
                self.lost(job, "failed", reason)

    def admit(self, job: Job) -> bool:
        """Place or reject the request. False: it has to wait."""
        request, nodes, now_s = job.request, self.nodes, self.clock.now
        isl, arrival_s = request.isl, request.arrival_s
        decode_tokens = isl + request.osl if request.osl > 1 else 0  # a single token comes from prefill
        prefill, decode = nodes.that_fit(isl, decode_tokens)
        if not (prefill and decode):
            return self._reject_if_too_large(job, isl, decode_tokens)

        def quote_s(p: int, d: int) -> float:
            return nodes.quote_s(prefill[p], decode[d], isl, arrival_s)

        view = RequestView(request.request_id, isl, request.osl, arrival_s, request.hash_ids)
        # The protocols have variables where a node has properties; policies only read them.
        p, d = self.routing.decide(now_s, view, prefill, decode, quote_s)  # type: ignore[arg-type]
        source, target = prefill[p], decode[d]
        where = "split" if self.roles is None else self.roles.where(now_s, view, source, target)  # type: ignore[arg-type]
        pair = nodes.pair(source, target)
        reserve = False
        if self.admission is not None:
            decision = self.admission.decide(now_s, SimulatedApplicant(job, pair, now_s, self.slo.ttft_s))
            if decision.action == "wait":
                return False
            if decision.action == "reject":
                self.lost(job, "rejected", _reason(decision))
                return True
            reserve = decision.reserve
            if decision.action == "local":
                where = "target"
        node = {"target": target, "source": source}.get(where)
        if source is target:
            node = source
        if node is not None and (node is target or isl + request.osl <= node.memory.tokens):
            self._place_on(node, job)
        else:
            self._place(pair, job, reserve)
        return True

    def _place(self, pair: NodePair, job: Job, reserve: bool) -> None:
        target = pair.target
        job.pair = pair
        job.prefill_node = pair.source.name
        if job.decode_iterations:
            job.decode_node = target.name
            target.reservations.promise(job)
            if reserve:
                target.reservations.reserve(job)
        pair.source.prompts.submit(job)

    def _place_on(self, node: Node, job: Job) -> None:
        job.pair, job.node = None, node
        job.prefill_node = job.decode_node = node.name
        node.reservations.promise(job)
        node.prompts.submit(job)

    def _reject_if_too_large(self, job: Job, isl: int, decode_tokens: int) -> bool:
        """Reject the request if it fits on no node. Otherwise it waits until some node has the role again."""
        for role, tokens in (("prefill", isl), ("decode", decode_tokens)):
            nodes = self.nodes.that_may_have(role)
            most = max((node.memory.tokens for node in nodes), default=0)
            if tokens > most:
                self.lost(job, "rejected", f"needs {tokens} tokens of KV; the largest {role} node holds {most}")
                return True
        return False


def _reason(decision: AdmissionDecision) -> str:
    retry = f"; retry after {decision.retry_after_s:.3g} s" if 0 < decision.retry_after_s < math.inf else ""
    return f"{decision.reason}{retry}"

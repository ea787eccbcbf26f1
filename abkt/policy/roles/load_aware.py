"""FlowKV's regimes: normal, imbalanced, overloaded; an idle side first lends its cycles, then a node.

    overloaded   min(L_P, L_D) > 1                                   nothing to lend: admission's work
    imbalanced   max(L_P, L_D) > 0.7 and |ln(L_P / L_D)| >= ln 1.5    until |ln| < ln 1.2 or max < 0.7
    normal       otherwise

The state changes by votes: 2 of the last 3 looks to enter, 4 of the last 5 to leave. While imbalanced, first soft: a request's prompt is
computed on its decode node (prefill loaded) or it decodes on its prefill node (decode loaded), where that node has less to do. Then, if it
is imbalanced for `patience` looks on, hard: the node of the idle side with least to do drains, is rebuilt and changes sides, if that pays
and the idle side can carry what then comes, for the loaded side holds back less of it. From n nodes there and m here, all loads L:

    L_here' = L_here m / (m + 1),    U_there' = U_there n / (n - 1) (m + 1) / m <= 1
    (max(L_P, L_D) - max(L_here', U_there')) horizon_s > rebuild_s

U is L_D of the decode side; of the prefill side, whose queue says little before it is full, the share of its nodes that have work, averaged
over the looks.

Source: FlowKV (arXiv 2504.03775), its load-aware scheduler; thresholds as in DESIGN, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from abkt.policy.roles.base import NodeLoad, Place, RoleChange, Where
from abkt.policy.roles.loads import Loads, loads
from abkt.policy.roles.static import Static
from abkt.policy.roles.votes import Votes
from abkt.policy.view import RequestView

LOOKS = 5  # that an average is over


@dataclass(slots=True)
class LoadAwareRoles(Static):
    """rebuild_s: what the cluster's nodes take for it. soft: whether cycles are lent; hard: whether nodes are."""

    period_s: float = 1.0
    ttft_slo_s: float = 1.0
    tpot_slo_s: float = 0.05
    busy: float = 0.7
    enter: float = 1.5
    leave: float = 1.2
    patience: int = 2
    horizon_s: float = 30.0
    rebuild_s: float = 0.007
    soft: bool = True
    hard: bool = True
    _votes: Votes = field(default_factory=Votes, init=False)
    _loaded: str = field(default="", init=False)  # prefill | decode, the side that has too much; "" while normal
    _looks: int = field(default=0, init=False)  # since it is so
    _working: float = field(default=0.0, init=False)  # share of prefill nodes that have work

    def __post_init__(self) -> None:
        Static.__post_init__(self)
        if not (self.ttft_slo_s > 0 and self.tpot_slo_s > 0 and self.busy > 0 and 1 <= self.leave <= self.enter and self.patience >= 1):
            raise ValueError("roles load_aware: SLOs and busy must be above 0, 1 <= leave <= enter, patience at least 1")

    @property
    def loaded(self) -> str:
        return self._loaded

    def decide(self, now_s: float, nodes: Sequence[NodeLoad]) -> list[RoleChange]:
        now = loads(nodes, self.ttft_slo_s, self.tpot_slo_s)
        if now.prefill:
            share = sum(nodes[i].queued_s > 0 for i in now.prefill) / len(now.prefill)
            self._working += (share - self._working) / LOOKS
        side = "prefill" if now.prompts > now.tokens else "decode"
        lean, most = abs(math.log(now.prompts / now.tokens)), max(now.prompts, now.tokens)
        if self._votes.on:
            on = self._votes.cast(lean < math.log(self.leave) or most < self.busy or side != self._loaded)
        else:
            on = self._votes.cast(most > self.busy and lean >= math.log(self.enter))
        if not on:
            self._loaded, self._looks = "", 0
            return []
        if not self._loaded:
            self._loaded = side
        self._looks += 1
        if not self.hard or self._looks < self.patience or side != self._loaded or min(now.prompts, now.tokens) > 1:
            return []
        return self._lend(nodes, now)

    def _lend(self, nodes: Sequence[NodeLoad], now: Loads) -> list[RoleChange]:
        to_prefill = self._loaded == "prefill"
        here, there = (now.prefill, now.decode) if to_prefill else (now.decode, now.prefill)
        if len(there) < 2 or any(not node.role for node in nodes):
            return []  # one at a time
        much, used = (now.prompts, now.tokens) if to_prefill else (now.tokens, self._working)
        grown = (len(here) + 1) / len(here)
        used *= len(there) / (len(there) - 1) * grown
        if used > 1 or (much - max(much / grown, used)) * self.horizon_s <= self.rebuild_s:
            return []
        self._looks = 0  # look what it does before the next one goes
        if to_prefill:
            return [RoleChange(min(there, key=lambda i: (nodes[i].kv_due, nodes[i].active, i)), "prefill")]
        return [RoleChange(min(there, key=lambda i: (nodes[i].queued_s, i)), "decode")]

    def where(self, now_s: float, request: RequestView, source: Place, target: Place) -> Where:
        if not (self.soft and self._loaded):
            return "split"
        if self._loaded == "prefill":
            idle = target.wait_s(request.isl) < source.queued_s and target.tpot_s < self.tpot_slo_s
            return "target" if idle else "split"
        idle = source.wait_s(request.isl) < target.wait_s(request.isl) or target.tpot_s > max(self.tpot_slo_s, source.tpot_s)
        return "source" if idle else "split"

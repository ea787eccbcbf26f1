"""FlowKV's three regimes: normal, imbalanced and overloaded. The idle side first lends the loaded side cycles, and later a node.

    overloaded   min(L_P, L_D) > 1                                   there is nothing to lend; admission must reject
    imbalanced   max(L_P, L_D) > 0.7 and |ln(L_P / L_D)| >= ln 1.5    until |ln| < ln 1.2 or max < 0.7
    normal       otherwise

L_P and L_D are the loads of the two sides (loads.py). The state has hysteresis: 2 of the last 3 checks to enter imbalance, 4 of the last
5 to leave it. While the cluster is imbalanced, the idle side lends cycles: a prompt is computed on its decode node (prefill is loaded), or
a request is decoded on its prefill node (decode is loaded), if that node has less to do. If the imbalance lasts for `lend_periods` checks,
the least loaded node of the idle side drains, is rebuilt and changes sides. This happens only if it pays and the idle side can take the
additional load, since the loaded side then passes on more work. With n nodes on the idle side and m on the loaded one:

    L_loaded' = L_loaded m / (m + 1),    U_idle' = U_idle n / (n - 1) (m + 1) / m <= 1
    (max(L_P, L_D) - max(L_loaded', U_idle')) payback_s > rebuild_s

U is L_D for the decode side. The queue of the prefill side says little before the side is full, so U is then the share of its nodes that
have work, averaged over the checks.

Source: FlowKV (arXiv 2504.03775), its load-aware scheduler; the thresholds are this project's (docs/design.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from abkt.policy.roles.base import NodeLoad, Place, RoleChange, Where
from abkt.policy.roles.hysteresis import Hysteresis
from abkt.policy.roles.loads import Loads, loads
from abkt.policy.roles.static import Static
from abkt.policy.routing.base import RequestView
from abkt.ranges import bound

CHECKS = 5  # number of checks over which the share of working nodes is averaged


@dataclass(slots=True)
class LoadAwareRoles(Static):
    """FlowKV's load-aware roles.

    Parameters
    ----------
    period_s : seconds between checks.
    ttft_slo_s, tpot_slo_s : the SLO; a load of 1 just meets it.
    min_load : nothing is done while both sides are below this load.
    enter_ratio, leave_ratio : ratio of the two loads at which imbalance begins and ends; 1 <= leave_ratio <= enter_ratio.
    lend_periods : checks for which cycles are lent before a node is moved.
    payback_s : time within which a move must save as much as it costs.
    rebuild_s : cost of a move: the seconds in which a node is rebuilt.
    lend_cycles, move_nodes : whether each of the two measures is used.

    Raises
    ------
    ValueError : if a value is out of its range.

    Source: FlowKV (arXiv 2504.03775).
    """

    period_s: float = 1.0
    ttft_slo_s: float = 1.0
    tpot_slo_s: float = 0.05
    min_load: float = 0.7
    enter_ratio: float = 1.5
    leave_ratio: float = 1.2
    lend_periods: int = 2
    payback_s: float = 30.0
    rebuild_s: float = 0.007
    lend_cycles: bool = True
    move_nodes: bool = True
    _imbalance: Hysteresis = field(default_factory=Hysteresis, init=False)
    _loaded: str = field(default="", init=False)  # prefill | decode, the loaded side; "" while normal
    _checks: int = field(default=0, init=False)  # checks since the imbalance began or a node was moved
    _working: float = field(default=0.0, init=False)  # share of prefill nodes that have work

    def __post_init__(self) -> None:
        Static.__post_init__(self)
        bound(self, "ttft_slo_s", "tpot_slo_s", "min_load", above=0)
        bound(self, "enter_ratio", "leave_ratio", "lend_periods", least=1)
        bound(self, "payback_s", "rebuild_s", least=0, infinite=True)
        if self.leave_ratio > self.enter_ratio:
            raise ValueError(f"leave_ratio is {self.leave_ratio} and enter_ratio {self.enter_ratio}; leave_ratio <= enter_ratio must hold")

    @property
    def loaded(self) -> str:
        """The loaded side, prefill or decode; empty while the load is normal."""
        return self._loaded

    def decide(self, now_s: float, nodes: Sequence[NodeLoad]) -> list[RoleChange]:
        now = loads(nodes, self.ttft_slo_s, self.tpot_slo_s)
        if now.prefill_nodes:
            share = sum(nodes[i].queued_s > 0 for i in now.prefill_nodes) / len(now.prefill_nodes)
            self._working += (share - self._working) / CHECKS
        side = "prefill" if now.prefill_load > now.decode_load else "decode"
        lean, most = abs(math.log(now.prefill_load / now.decode_load)), max(now.prefill_load, now.decode_load)
        if self._imbalance.on:
            on = self._imbalance.update(lean < math.log(self.leave_ratio) or most < self.min_load or side != self._loaded)
        else:
            on = self._imbalance.update(most > self.min_load and lean >= math.log(self.enter_ratio))
        if not on:
            self._loaded, self._checks = "", 0
            return []
        if not self._loaded:
            self._loaded = side
        self._checks += 1
        if not self.move_nodes or self._checks < self.lend_periods or side != self._loaded or min(now.prefill_load, now.decode_load) > 1:
            return []
        return self._move(nodes, now)

    def _move(self, nodes: Sequence[NodeLoad], now: Loads) -> list[RoleChange]:
        to_prefill = self._loaded == "prefill"
        loaded, idle = (now.prefill_nodes, now.decode_nodes) if to_prefill else (now.decode_nodes, now.prefill_nodes)
        if len(idle) < 2 or any(not node.role for node in nodes):
            return []  # one change at a time
        load, used = (now.prefill_load, now.decode_load) if to_prefill else (now.decode_load, self._working)
        if loaded:  # else its nodes are dead, and a node pays at once
            grown = (len(loaded) + 1) / len(loaded)
            used *= len(idle) / (len(idle) - 1) * grown
            if used > 1 or (load - max(load / grown, used)) * self.payback_s <= self.rebuild_s:
                return []
        self._checks = 0  # wait for the effect before the next move
        if to_prefill:
            return [RoleChange(min(idle, key=lambda i: (nodes[i].kv_due, nodes[i].active, i)), "prefill")]
        return [RoleChange(min(idle, key=lambda i: (nodes[i].queued_s, i)), "decode")]

    def where(self, now_s: float, request: RequestView, source: Place, target: Place) -> Where:
        if not (self.lend_cycles and self._loaded):
            return "split"
        if self._loaded == "prefill":
            lends = target.wait_s(request.isl) < source.queued_s and target.tpot_s < self.tpot_slo_s
            return "target" if lends else "split"
        lends = source.wait_s(request.isl) < target.wait_s(request.isl) or target.tpot_s > max(self.tpot_slo_s, source.tpot_s)
        return "source" if lends else "split"

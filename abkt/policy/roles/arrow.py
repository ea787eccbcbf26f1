"""One node at a time changes its role, without draining, when its new side is about to miss the SLO and its old side is not.

    to prefill:  the shortest prompt queue is above `high` of the TTFT SLO, and the decode side without the node would stay below `low`
    to decode:   the least loaded decode node is above `high`, and the prefill side without the node would stay below `low`

The least loaded node changes, and finishes its old work alongside the new work. At least one node stays on each side.

Source: Arrow (arXiv 2505.11916): stateless instances and SLO-aware scheduling by predictions. Here the loads take the place of predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abkt.policy.roles.base import NodeLoad, RoleChange
from abkt.policy.roles.loads import decode_load, loads, prefill_load
from abkt.policy.roles.static import Static
from abkt.ranges import bound


@dataclass(slots=True)
class Arrow(Static):
    """high: load, relative to the SLO, above which a side is about to miss it. low: highest load of the other side after the change."""

    period_s: float = 1.0
    ttft_slo_s: float = 1.0
    tpot_slo_s: float = 0.05
    high: float = 0.8
    low: float = 0.8

    def __post_init__(self) -> None:
        Static.__post_init__(self)
        bound(self, "ttft_slo_s", "tpot_slo_s", "high", "low", above=0)

    def decide(self, now_s: float, nodes: Sequence[NodeLoad]) -> list[RoleChange]:
        now = loads(nodes, self.ttft_slo_s, self.tpot_slo_s)
        if not now.prefill_nodes or not now.decode_nodes:
            return []
        queue = min(prefill_load(nodes[i], self.ttft_slo_s) for i in now.prefill_nodes)
        pace = min(decode_load(nodes[i], self.tpot_slo_s) for i in now.decode_nodes)
        if queue > self.high and pace <= self.high:
            return self._move(nodes, now.decode_nodes, now.decode_load, "prefill")
        if pace > self.high and queue <= self.high:
            return self._move(nodes, now.prefill_nodes, now.prefill_load, "decode")
        return []

    def _move(self, nodes: Sequence[NodeLoad], side: tuple[int, ...], load: float, role: str) -> list[RoleChange]:
        """The least loaded node of `side`, if the other nodes of the side can take over its load."""
        if len(side) < 2 or load * len(side) / (len(side) - 1) > self.low:
            return []
        if role == "prefill":
            return [RoleChange(min(side, key=lambda i: (nodes[i].kv_due, i)), "prefill", drain=False)]
        return [RoleChange(min(side, key=lambda i: (nodes[i].queued_s, i)), "decode", drain=False)]

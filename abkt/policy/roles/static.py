"""Every node keeps its role: x prefill and y decode nodes (xPyD). The baseline of the other roles policies, and their base class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from abkt.policy.roles.base import NodeLoad, Place, RoleChange, Where
from abkt.policy.routing.base import RequestView
from abkt.ranges import bound


@dataclass(slots=True)
class Static:
    """Never changes a role. period_s: seconds between calls of `decide`; inf: never."""

    period_s: float = math.inf

    def __post_init__(self) -> None:
        bound(self, "period_s", above=0, infinite=True)

    def begin(self, role: str) -> str:
        return role

    def decide(self, now_s: float, nodes: Sequence[NodeLoad]) -> list[RoleChange]:
        return []

    def where(self, now_s: float, request: RequestView, source: Place, target: Place) -> Where:
        return "split"

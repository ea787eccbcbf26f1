"""Role changes at configured times, so that the simulator and real workers can be compared around the same changes.

A change is delayed while its node is still changing or is the last one of its side. It is dropped if the node is gone or already has the
role.

Source: planners that move nodes between pools by a forecast; here the user gives the times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from abkt.policy.roles.base import NodeLoad, RoleChange
from abkt.policy.roles.static import Static
from abkt.ranges import OutOfRange, bound

SIDES = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Switch:
    """From at_s on, the node named `worker` has this role."""

    at_s: float
    worker: str
    role: Literal["prefill", "decode"]

    def __post_init__(self) -> None:
        bound(self, "at_s", least=0)
        if self.role not in SIDES:
            raise OutOfRange(f"role is {self.role!r}; it must be prefill or decode")


@dataclass(slots=True)
class Scheduled(Static):
    """changes: the planned changes; each holds the fields of a Switch. `decide` raises ValueError on its first call if a change names an
    unknown node."""

    period_s: float = 0.1
    changes: Sequence[Mapping[str, Any]] = ()
    _due: list[Switch] = field(default_factory=list, init=False)
    _checked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        Static.__post_init__(self)
        try:
            self._due = sorted((Switch(**change) for change in self.changes), key=lambda switch: switch.at_s)
        except OutOfRange as error:
            raise error.under("changes") from None
        except TypeError:
            raise ValueError("roles scheduled: a change has the fields at_s, worker and role, and no others") from None

    def decide(self, now_s: float, nodes: Sequence[NodeLoad]) -> list[RoleChange]:
        places = {node.name: i for i, node in reversed(list(enumerate(nodes)))}
        self._check(places)
        roles: list[str] = [node.role for node in nodes]
        made, waiting = [], []
        for switch in self._due:
            at = places.get(switch.worker)
            if switch.at_s > now_s or (at is not None and roles[at] != switch.role and not _free(roles, at)):
                waiting.append(switch)
            elif at is not None and roles[at] != switch.role:
                roles[at] = ""
                made.append(RoleChange(at, switch.role))
        self._due = waiting
        return made

    def _check(self, places: Mapping[str, int]) -> None:
        if not self._checked and (unknown := [switch.worker for switch in self._due if switch.worker not in places]):
            raise ValueError(f"roles scheduled: there is no node {unknown[0]}; the nodes are {', '.join(sorted(places))}")
        self._checked = True


def _free(roles: Sequence[str], at: int) -> bool:
    """Whether the node may change now: it is not changing, and each of its sides has another node."""
    others = [role for i, role in enumerate(roles) if i != at]
    mine = SIDES if roles[at] == "both" else (roles[at],)
    return roles[at] != "" and all(any(role in (side, "both") for role in others) for side in mine)

"""Roles by the clock: who changes to what, and when, is written down, so that two worlds can be compared around the same changes.

A change that cannot be had yet, as its node still changes or is the last one of its side, waits until it can. A node that is gone by then,
or has the role already, needs none.

Source: the timed pool moves of planners that work from a forecast; a forecast is the user's here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from abkt.policy.roles.base import NodeLoad, RoleChange
from abkt.policy.roles.static import Static

SIDES = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Switch:
    """From at_s on, the node of this name has this role."""

    at_s: float
    worker: str
    role: Literal["prefill", "decode"]

    def __post_init__(self) -> None:
        if not self.at_s >= 0 or self.role not in SIDES:
            raise ValueError(
                f"roles scheduled: {self.worker} at {self.at_s} s to {self.role!r}; at_s must be 0 or more, role prefill or decode"
            )


@dataclass(slots=True)
class Scheduled(Static):
    """changes: the fields of a Switch each. Raises ValueError at the first look where one names a node that there is not."""

    period_s: float = 0.1
    changes: Sequence[Mapping[str, Any]] = ()
    _due: list[Switch] = field(default_factory=list, init=False)
    _looked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        Static.__post_init__(self)
        try:
            self._due = sorted((Switch(**change) for change in self.changes), key=lambda switch: switch.at_s)
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
        if not self._looked and (unknown := [switch.worker for switch in self._due if switch.worker not in places]):
            raise ValueError(f"roles scheduled: there is no node {unknown[0]}; there are {', '.join(sorted(places))}")
        self._looked = True


def _free(roles: Sequence[str], at: int) -> bool:
    """Whether this one may change now: it is not changing, and each side that it is on has another."""
    others = [role for i, role in enumerate(roles) if i != at]
    mine = SIDES if roles[at] == "both" else (roles[at],)
    return roles[at] != "" and all(any(role in (side, "both") for role in others) for side in mine)

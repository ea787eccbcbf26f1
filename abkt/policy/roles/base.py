"""The input of a roles policy and its answer: which nodes prefill, which decode, and where one request may do both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from abkt.policy.routing.base import DecodeLoad, PrefillLoad, RequestView

Role = Literal["prefill", "decode", "both"]
Where = Literal["split", "source", "target"]


class NodeLoad(Protocol):
    """A node as a roles policy sees it.

    name: name of the node. role: a Role, or "" while it changes. active: requests placed there and not finished. tpot_s: seconds of its
    last iteration. prefill_weight, decode_weight: its speed at each kind of work, relative to the fastest node.
    """

    name: str
    role: str
    active: int
    tpot_s: float
    prefill_weight: float
    decode_weight: float

    @property
    def queued_s(self) -> float:
        """Expected seconds of prefill work that was accepted and is not done."""
        ...

    @property
    def kv_due(self) -> float:
        """Share of the node's KV memory needed by requests that decode here or wait here for memory. Requests whose prompts are not
        computed yet do not count."""
        ...


class Place(PrefillLoad, DecodeLoad, Protocol):
    """A node on which a whole request may run."""


@dataclass(frozen=True, slots=True)
class RoleChange:
    """A node gets another role. node: its index. drain: the node gets no new work until all its work is done, and is then rebuilt;
    otherwise it has the new role at once and finishes its old work alongside the new work."""

    node: int
    role: Role
    drain: bool = True


class RolesPolicy(Protocol):
    """Chooses the roles of the nodes. There is one object per cluster. period_s: seconds between calls of `decide`; inf: it is never
    called."""

    period_s: float

    def begin(self, role: str) -> str:
        """The Role with which a node configured for `role` starts."""
        ...

    def decide(self, now_s: float, nodes: Sequence[NodeLoad]) -> list[RoleChange]:
        """The changes to make now."""
        ...

    def where(self, now_s: float, request: RequestView, source: Place, target: Place) -> Where:
        """After routing: `split` runs prefill on source and decoding on target; `source` or `target` runs the whole request there."""
        ...

"""What a policy of roles sees and says: which node computes prompts, which decodes, and where one request may do both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from abkt.policy.view import DecodeLoad, PrefillLoad, RequestView

Role = Literal["prefill", "decode", "both"]
Where = Literal["split", "source", "target"]


class NodeLoad(Protocol):
    """A node as a policy of roles sees it. role: a Role, or "" while it changes. weights: how much of each work it does a second, by what
    the fastest node does."""

    name: str
    role: str
    active: int
    tpot_s: float
    prefill_weight: float
    decode_weight: float

    @property
    def queued_s(self) -> float: ...

    @property
    def kv_due(self) -> float:
        """By its memory, what those need that decode here, or would if they had room; without those whose prompts are not computed yet."""
        ...


class Place(PrefillLoad, DecodeLoad, Protocol):
    """A node on which a whole request may run."""


@dataclass(frozen=True, slots=True)
class RoleChange:
    """The node (its place in the list) gets another role. drain: it gets nothing to do until all it has is done, and is then rebuilt;
    otherwise it has its new role at once, and finishes the old work beside."""

    node: int
    role: Role
    drain: bool = True


class RolesPolicy(Protocol):
    """One object for a cluster. period_s: how often decide is asked; math.inf: never."""

    period_s: float

    def begin(self, role: str) -> str:
        """The Role that a node begins with that is meant for `role`."""
        ...

    def decide(self, now_s: float, nodes: Sequence[NodeLoad]) -> list[RoleChange]: ...

    def where(self, now_s: float, request: RequestView, source: Place, target: Place) -> Where:
        """Once routing has chosen a pair: prompt and decoding apart, or both on the one or the other of them, without a transfer."""
        ...

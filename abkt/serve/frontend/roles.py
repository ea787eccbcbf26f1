"""A policy of roles over real workers: what it sees of them, and what of its wishes can be had.

A real worker has one role at a time and always drains before it changes, whether or not the policy asks for that; its model and pool stay,
so nothing is rebuilt but its listener or its senders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abkt.policy.build import build
from abkt.policy.roles.base import RolesPolicy
from abkt.policy.roles.static import Static
from abkt.serve.frontend.reservations import Reservations
from abkt.serve.frontend.workers import Workers


@dataclass(slots=True)
class WorkerLoad:
    """One worker, as a NodeLoad. Weights are equal: workers of one machine are alike."""

    name: str
    role: str
    active: int = 0
    kv_due: float = 0.0  # the book's kv_used: it has those too whose prompts are not computed yet
    tpot_s: float = 0.0
    queued_s: float = 0.0
    prefill_weight: float = 1.0
    decode_weight: float = 1.0


class RoleController:
    """Asks a policy now and then. Raises ValueError, one line, for one that needs workers with two roles at once."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._policy: RolesPolicy = build(config)
        kind = type(self._policy)
        lends = kind.where is not Static.where and getattr(self._policy, "lend_cycles", True)
        if self._policy.begin("prefill") != "prefill" or lends:
            raise ValueError(
                f"roles {kind.__name__} runs whole requests on one worker, which real ones do not; take static, arrow, or load_aware with "
                "roles.lend_cycles=false"
            )
        self._next_s = self._policy.period_s

    @property
    def moves(self) -> bool:
        """Whether anybody may ever change."""
        return self._policy.period_s < math.inf

    def due(self, now_s: float, roster: Workers, book: Reservations) -> list[tuple[str, str]]:
        """Who is to get which role now."""
        if now_s < self._next_s:
            return []
        self._next_s = now_s + self._policy.period_s
        nodes = [_load(name, roster, book) for name in roster.members]
        wishes = [(nodes[change.node].name, change.role) for change in self._policy.decide(now_s, nodes)]
        return [(name, role) for name, role in wishes if roster.members[name].state == "ready" and not roster.is_last(name)]


def _load(name: str, roster: Workers, book: Reservations) -> WorkerLoad:
    """As the book has it; without a role while it changes."""
    member = roster.members[name]
    if member.state != "ready":
        return WorkerLoad(name, "")
    if member.role == "prefill":
        return WorkerLoad(name, "prefill", queued_s=book.prefill[name].queued_s)
    decode = book.decode[name]
    return WorkerLoad(name, "decode", decode.active, decode.kv_used, decode.tpot_s)

"""A roles policy over real workers: the load it sees, and the checks whether its changes are possible.

A real worker has one role at a time. It always drains before it changes its role, even if the policy does not ask for that. It keeps its
model and pool; only its listener or its senders are rebuilt.
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
    """One worker; implements NodeLoad. All weights are equal, because the workers of one machine are alike.

    kv_due: share of the worker's memory that is reserved; it includes prompts that are not computed yet.
    """

    name: str
    role: str
    active: int = 0
    kv_due: float = 0.0
    tpot_s: float = 0.0
    queued_s: float = 0.0
    prefill_weight: float = 1.0
    decode_weight: float = 1.0


class WorkerRoles:
    """Asks a roles policy once per period. Raises ValueError, one line, if the policy needs workers with two roles at once."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._policy: RolesPolicy = build(config)
        kind = type(self._policy)
        lends = kind.where is not Static.where and getattr(self._policy, "lend_cycles", True)
        if self._policy.begin("prefill") != "prefill" or lends:
            raise ValueError(
                f"roles {kind.__name__} runs whole requests on one worker, which real workers cannot do; take static, arrow, or load_aware "
                "with roles.lend_cycles=false"
            )
        self._next_s = self._policy.period_s

    @property
    def moves(self) -> bool:
        """Whether any worker may ever change its role."""
        return self._policy.period_s < math.inf

    def due(self, now_s: float, workers: Workers, reservations: Reservations) -> list[tuple[str, str]]:
        """(worker, next role) of each change to make now."""
        if now_s < self._next_s:
            return []
        self._next_s = now_s + self._policy.period_s
        loads = [_load(name, workers, reservations) for name in workers.states]
        wishes = [(loads[change.node].name, change.role) for change in self._policy.decide(now_s, loads)]
        return [(name, role) for name, role in wishes if workers.states[name].phase == "ready" and not workers.is_last(name)]


def _load(name: str, workers: Workers, reservations: Reservations) -> WorkerLoad:
    """The load of a worker, from its reservations; its role is empty while it changes."""
    worker = workers.states[name]
    if worker.phase != "ready":
        return WorkerLoad(name, "")
    if worker.role == "prefill":
        return WorkerLoad(name, "prefill", queued_s=reservations.prefill[name].queued_s)
    decode = reservations.decode[name]
    return WorkerLoad(name, "decode", decode.active, decode.kv_used, decode.tpot_s)

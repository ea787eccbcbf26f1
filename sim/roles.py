"""Nodes that change roles: a policy looks at the loads every so often; a node that is to change drains, is rebuilt, and goes on.

A node that drains gets nothing new, and prompts that have no memory yet go elsewhere. It is done when nothing of its memory is in use: its
prompts are sent and acknowledged, its requests have their last tokens, and those that were promised to it have come and gone. What its
prefix cache holds stays.

Not modelled: KV that is moved away from a node that drains; the old and the new program in memory at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from simpy.events import Event

from abkt.policy.roles.base import Role, RoleChange, RolesPolicy
from sim.clock import Clock, Wake
from sim.node.fleet import Nodes
from sim.node.job import Job
from sim.node.node import Node


class RoleController:
    """again(job): called for a prompt that has to go elsewhere. log: (time, node, its role from then on)."""

    def __init__(
        self,
        clock: Clock,
        fleet: Nodes,
        policy: RolesPolicy,
        rebuild_s: float,
        running: Callable[[], bool],
        again: Callable[[Job], None],
    ) -> None:
        self.clock, self.fleet, self.policy, self.rebuild_s, self.running, self.again = clock, fleet, policy, rebuild_s, running, again
        self.next: dict[Node, Role] = {}  # of those that drain or are rebuilt
        self.log: list[tuple[float, str, str]] = []
        for node in fleet.nodes:
            node.role = policy.begin(node.role)
            node.drained = self._rebuild
        fleet.rank()
        if policy.period_s < float("inf"):
            clock.process(self._look())

    def change(self, change: RoleChange) -> None:
        node = self.fleet.nodes[change.node]
        if not change.drain:
            self._give(node, change.role)
            return
        self.next[node] = change.role
        node.role = ""
        self.fleet.rank()
        for job in [job for job in node.prompts if job.pair is not None and not job.reserved]:
            node.forget(job)
            self.again(job)
        self.log.append((self.clock.now, node.name, ""))
        node.check_drained()

    def _look(self) -> Generator[Event, None, None]:
        wake = Wake(self.clock)
        while True:
            yield wake.after(self.policy.period_s)
            if not self.running():
                return
            changes = self.policy.decide(self.clock.now, self.fleet.nodes)
            for change in changes:
                self.change(change)
            if not changes and self.clock.peek() == float("inf"):
                return  # nothing will happen any more; the run says so

    def _rebuild(self, node: Node) -> None:
        """It has nothing left to do."""
        if node.rebuilding:
            return
        node.rebuilding = True
        wake = Wake(self.clock)
        wake.callbacks.append(lambda _: self._rebuilt(node))
        wake.after(self.rebuild_s)

    def _rebuilt(self, node: Node) -> None:
        if node in self.next:  # else it died meanwhile
            self._give(node, self.next.pop(node))

    def _give(self, node: Node, role: Role) -> None:
        node.rebuilding = False
        node.role = role
        self.fleet.rank()
        self.log.append((self.clock.now, node.name, role))
        self.fleet.changed()

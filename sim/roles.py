"""Role changes of nodes: a policy looks at the loads periodically. A node that changes its role drains, is rebuilt, and serves again.

A draining node gets no new work, and its prompts that have no memory yet go to other nodes. It is drained when none of its memory is in
use: its prompts are sent and acknowledged, its requests have their last tokens, and all requests that were placed on it have ended. Its
prefix cache is kept.

Not modelled: moving KV away from a draining node; the old and the new process in memory at the same time.
"""

from __future__ import annotations

from collections.abc import Callable

from abkt.policy.roles.base import Role, RoleChange, RolesPolicy
from sim.job import Job
from sim.node.node import Node
from sim.nodes import Nodes
from sim.timers import Process, Timers, Wake


class RoleController:
    """Applies the decisions of a roles policy to the nodes.

    next: the new role of each node that drains or is rebuilt. log: (time, node, its role from then on; "" while the role changes).
    move(job): called for a prompt that has to go to another node.
    """

    def __init__(
        self,
        clock: Timers,
        nodes: Nodes,
        policy: RolesPolicy,
        rebuild_s: float,
        running: Callable[[], bool],
        move: Callable[[Job], None],
    ) -> None:
        self.clock, self.nodes, self.policy, self.rebuild_s, self.running, self.move = clock, nodes, policy, rebuild_s, running, move
        self.next: dict[Node, Role] = {}
        self.log: list[tuple[float, str, str]] = []
        for node in nodes.all:
            node.role = policy.begin(node.role)
            node.drained = self._rebuild
        nodes.update_rankings()
        if policy.period_s < float("inf"):
            clock.process(self._run())

    def change(self, change: RoleChange) -> None:
        node = self.nodes.all[change.node]
        if not change.drain:
            self._set_role(node, change.role)
            return
        self.next[node] = change.role
        node.role = ""
        self.nodes.update_rankings()
        for job in [job for job in node.prompts.waiting if job.pair is not None and not job.prompt.has_memory]:
            node.prompts.abort(job)
            self.move(job)
        self.log.append((self.clock.now, node.name, ""))
        node.check_drained()

    def _run(self) -> Process:
        wake = Wake(self.clock)
        while True:
            yield wake.after(self.policy.period_s)
            if not self.running():
                return
            changes = self.policy.decide(self.clock.now, self.nodes.all)  # type: ignore[arg-type]  # a policy only reads them
            for change in changes:
                self.change(change)
            if not changes and self.clock.peek() == float("inf"):
                return  # no event is left: the run ends and reports the requests that are stuck

    def _rebuild(self, node: Node) -> None:
        """Begin to rebuild a node that has drained."""
        if node.rebuilding:
            return
        node.rebuilding = True
        wake = Wake(self.clock)
        wake.waiter = lambda: self._rebuilt(node)
        wake.after(self.rebuild_s)

    def _rebuilt(self, node: Node) -> None:
        if node in self.next:  # otherwise the node died meanwhile
            self._set_role(node, self.next.pop(node))

    def _set_role(self, node: Node, role: Role) -> None:
        node.rebuilding = False
        node.role = role
        self.nodes.update_rankings()
        self.log.append((self.clock.now, node.name, role))
        self.nodes.changed()

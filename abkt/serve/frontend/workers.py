"""Which workers there are, in which role and state: they start, serve, drain, change their role, leave or die."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from abkt.net.namespaces import Namespaces
from abkt.serve.control import ROLES, Message, WorkerConfig
from abkt.serve.frontend.process import ClusterError, Events, Worker, WorkerDied

GONE = "gone"


@dataclass(slots=True)
class WorkerState:
    """state: starting (a new process, or a new role), ready, or draining: nothing new comes, and `then` follows, a role or GONE.

    address: where a decode worker takes KV in.
    """

    worker: Worker
    role: str
    state: str = "starting"
    address: str = ""
    then: str = ""


class Workers:
    """config: of a worker by its name, role and number. namespaces: where each of them runs, if anywhere."""

    def __init__(self, config: Callable[[str, str, int], WorkerConfig], log_dir: Path, namespaces: Namespaces | None = None) -> None:
        self.members: dict[str, WorkerState] = {}
        self.events: Events = SimpleQueue()
        self._config = config
        self._log_dir = log_dir
        self._namespaces = namespaces
        self._started = 0

    def start(self, name: str, role: str) -> None:
        """A new process; it says `ready` when it is. Raises ValueError for a name that is taken, or a role that is none."""
        if name in self.members:
            raise ValueError(f"there is a worker {name} already")
        check_role(role)
        where = self._namespaces.command(name) if self._namespaces else ()
        config = self._config(name, role, self._started)
        self._started += 1
        self.members[name] = WorkerState(Worker(config, self._log_dir, self.events, where), role)

    def sort(self, names: Iterable[str]) -> None:
        """Policies see them in this order, as they see the nodes of the model."""
        self.members = {name: self.members[name] for name in names}

    def new_name(self, role: str) -> str:
        """One that no worker has or had: its log stays."""
        return next(
            name for n in range(1000) if (name := f"{role[0]}{n}") not in self.members and not (self._log_dir / f"{name}.log").exists()
        )

    def wait(self, timeout_s: float) -> None:
        """Until all are ready. Raises WorkerDied, or ClusterError after timeout_s."""
        until_s = time.monotonic() + timeout_s
        while starting := [name for name, member in self.members.items() if member.state == "starting"]:
            if time.monotonic() > until_s:
                raise ClusterError(
                    f"worker {starting[0]} was not ready after {timeout_s:.0f} s; see {self.members[starting[0]].worker.log}"
                )
            name, message = self.next(1.0)
            if message and message["event"] == "ready":
                self.ready(name, message)
            elif name and message is None:
                raise self.lost(name)

    def next(self, timeout_s: float) -> tuple[str, Message | None]:
        """The next event; ("", None) after timeout_s."""
        try:
            return self.events.get(timeout=timeout_s) if timeout_s > 0 else self.events.get_nowait()
        except Empty:
            return "", None

    def ask(self, names: Iterable[str], op: str, answer: str, timeout_s: float, /, **fields: object) -> list[Message]:
        """Tell them, and wait for each one's answer; between two runs, when nobody has anything else to say.

        Raises WorkerDied, or ClusterError after timeout_s.
        """
        asked, answers, until_s = set(names), [], time.monotonic() + timeout_s
        for name in asked:
            self.members[name].worker.tell(op, **fields)
        while asked:
            if time.monotonic() > until_s:
                raise ClusterError(f"worker {min(asked)} did not answer {op} within {timeout_s:.0f} s")
            name, message = self.next(min(timeout_s, 1.0))
            if name in asked and message is None:
                raise self.lost(name)
            if message and message["event"] == answer:
                asked.discard(name)
                answers.append(message)
        return answers

    def ready(self, name: str, message: Message) -> None:
        member = self.members[name]
        member.role, member.address, member.state = message["role"], message["address"], "ready"

    def serving(self, role: str) -> list[str]:
        """Those that take requests now."""
        return [name for name, member in self.members.items() if member.role == role and member.state == "ready"]

    @property
    def settled(self) -> bool:
        """Whether nobody starts, drains or changes."""
        return all(member.state == "ready" for member in self.members.values())

    def will_serve(self, role: str) -> bool:
        """Whether there is, or will be, one that takes requests in this role."""
        return any((member.then or member.role) == role for member in self.members.values())

    def addresses(self) -> dict[str, str]:
        """Of the decode workers that are ready, or still have something to receive."""
        return {name: member.address for name, member in self.members.items() if member.role == "decode" and member.state != "starting"}

    def is_last(self, name: str) -> bool:
        """Whether its role would be left to nobody."""
        member = self.members[name]
        return not any(other is not member and (other.then or other.role) == member.role for other in self.members.values())

    def drain(self, name: str, then: str) -> None:
        """Nothing new comes to this one; `then` is its next role, or GONE. Raises ValueError, one line, where that cannot be."""
        member = self.members.get(name)
        if member is None:
            raise ValueError(f"there is no worker {name}; there are {', '.join(sorted(self.members))}")
        if then != GONE:
            check_role(then)
        if then != member.role and self.is_last(name):
            raise ValueError(f"worker {name} is the last one for {member.role}; another one must come first")
        if member.state != "ready":
            raise ValueError(f"worker {name} is {member.state}; it can change when it is ready")
        if then != member.role:
            member.state, member.then = "draining", then

    def drained(self, name: str) -> None:
        """It holds nothing any more: let it change, or go."""
        member = self.members[name]
        if member.then == GONE:
            del self.members[name]
            member.worker.end()
            return
        with suppress(WorkerDied):  # its end is told by its own event
            member.worker.tell("role", role=member.then)
        member.role, member.then, member.state, member.address = member.then, "", "starting", ""

    def restore(self, name: str, role: str) -> None:
        """Between two runs, when it holds nothing: give it this role again. It says `ready` when it has."""
        self.members[name].then = role
        self.drained(name)

    def watch(self) -> None:
        """Kill whoever has been silent for too long; those that start may be."""
        now_s = time.monotonic()
        for member in self.members.values():
            if member.state != "starting":
                member.worker.watch(now_s)

    def lost(self, name: str) -> WorkerDied:
        """Its process has ended; says how."""
        member = self.members.pop(name)
        death = member.worker.death()
        member.worker.end(ask=False)
        return death

    def close(self, ask: bool = True) -> None:
        """ask: let the workers finish what they are at; without, whoever waits for an error gets it at once."""
        for member in self.members.values():
            member.worker.end(ask)
        self.members.clear()


def check_role(role: str) -> None:
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none; it must be one of {', '.join(ROLES)}")


def core_of(name: str, number: int) -> int:
    """One core each, as far as they go: the first two workers of a cluster do not share one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[{"p0": 0, "d0": 1}.get(name, number) % len(cores)]

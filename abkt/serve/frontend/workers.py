"""The workers of a cluster, and the role and phase of each: they start, serve, drain, change their role, leave or die."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

from abkt.net.namespaces import Namespaces
from abkt.serve.commands import ROLES, ChangeRole, WorkerCommand, WorkerConfig
from abkt.serve.errors import ClusterError, WorkerDied
from abkt.serve.frontend.process import SILENCE_S, START_SILENCE_S, Events, WorkerProcess
from abkt.serve.reports import DecodeIterations, Prepared, Ready, WorkerReport

GONE = "gone"
START_S = 180.0  # a worker that is not ready by then is killed
Answer = TypeVar("Answer", Prepared, DecodeIterations)


@dataclass(slots=True)
class WorkerState:
    """phase: starting (a new process or a new role), ready or draining. A draining worker gets no new requests. Once it holds none, it
    takes next_role, or ends if that is GONE. address: where a decode worker accepts KV. since_s: when it began to start."""

    process: WorkerProcess
    role: str
    phase: str = "starting"
    address: str = ""
    next_role: str = ""
    since_s: float = field(default_factory=time.monotonic)


class Workers:
    """All workers. config: makes a worker's config from name, role and number. namespaces: network namespaces of the workers, if any."""

    def __init__(self, config: Callable[[str, str, int], WorkerConfig], log_dir: Path, namespaces: Namespaces | None = None) -> None:
        self.states: dict[str, WorkerState] = {}
        self.events: Events = SimpleQueue()
        self._config = config
        self._log_dir = log_dir
        self._namespaces = namespaces
        self._started = 0

    def start(self, name: str, role: str) -> None:
        """Start a process; it reports Ready later. Raises ValueError if the name is taken or the role unknown."""
        if name in self.states:
            raise ValueError(f"there is a worker {name} already")
        check_role(role)
        launcher = self._namespaces.command(name) if self._namespaces else ()
        config = self._config(name, role, self._started)
        self._started += 1
        self.states[name] = WorkerState(WorkerProcess(config, self._log_dir, self.events, launcher), role)

    def sort(self, names: Iterable[str]) -> None:
        """Sort the workers by `names`. Policies see them in this order, which is that of the simulator's nodes."""
        self.states = {name: self.states[name] for name in names}

    def new_name(self, role: str) -> str:
        """A name that no worker has or had, so that no log is overwritten."""
        return next(
            name for n in itertools.count() if (name := f"{role[0]}{n}") not in self.states and not (self._log_dir / f"{name}.log").exists()
        )

    def wait(self, timeout_s: float) -> None:
        """Wait until all are ready. Raises WorkerDied, or ClusterError after timeout_s."""
        until_s = time.monotonic() + timeout_s
        while starting := [name for name, worker in self.states.items() if worker.phase == "starting"]:
            if time.monotonic() > until_s:
                log = self.states[starting[0]].process.log
                raise ClusterError(f"worker {starting[0]} was not ready after {timeout_s:.0f} s; see {log}")
            name, report = self.next(1.0)
            if isinstance(report, Ready):
                self.ready(name, report)
            elif name and report is None:
                raise self.lost(name)

    def next(self, timeout_s: float) -> tuple[str, WorkerReport | None]:
        """(worker, report), or (worker, None) if it has ended; ("", None) after timeout_s or `wake`."""
        try:
            return self.events.get(timeout=timeout_s) if timeout_s > 0 else self.events.get_nowait()
        except Empty:
            return "", None

    def wake(self) -> None:
        """Make `next` return at once. May be called from any thread."""
        self.events.put(("", None))

    def ask(self, names: Iterable[str], command: WorkerCommand, answer: type[Answer], timeout_s: float) -> list[Answer]:
        """Send a command to these workers, and wait for one answer of each. Only between two runs: other reports are dropped.

        Raises WorkerDied, or ClusterError after timeout_s.
        """
        answers: list[Answer] = []
        asked, until_s = set(names), time.monotonic() + timeout_s
        for name in asked:
            self.states[name].process.tell(command)
        while asked:
            if time.monotonic() > until_s:
                raise ClusterError(f"worker {min(asked)} did not answer {type(command).__name__} within {timeout_s:.0f} s")
            name, report = self.next(min(timeout_s, 1.0))
            if name in asked and report is None:
                raise self.lost(name)
            if isinstance(report, answer):
                asked.discard(name)
                answers.append(report)
        return answers

    def tell(self, name: str, command: WorkerCommand) -> None:
        """Send a command. Does nothing if the process has ended; its end is reported as an event."""
        with suppress(WorkerDied):
            self.states[name].process.tell(command)

    def tell_all(self, role: str, command: WorkerCommand) -> None:
        """Send a command to every worker that accepts requests in this role."""
        for name in self.serving(role):
            self.tell(name, command)

    def ready(self, name: str, report: Ready) -> None:
        worker = self.states[name]
        worker.role, worker.address, worker.phase = report.role, report.address, "ready"

    def serving(self, role: str) -> list[str]:
        """The workers of a role that accept requests now."""
        return [name for name, worker in self.states.items() if worker.role == role and worker.phase == "ready"]

    @property
    def settled(self) -> bool:
        """Whether no worker is starting or draining."""
        return all(worker.phase == "ready" for worker in self.states.values())

    def will_serve(self, role: str) -> bool:
        """Whether some worker accepts requests in this role, now or after a change."""
        return any((worker.next_role or worker.role) == role for worker in self.states.values())

    def addresses(self) -> dict[str, str]:
        """Addresses of the decode workers that are ready or draining."""
        return {name: worker.address for name, worker in self.states.items() if worker.role == "decode" and worker.phase != "starting"}

    def is_last(self, name: str) -> bool:
        """Whether no other worker has this worker's role."""
        worker = self.states[name]
        return not any(other is not worker and (other.next_role or other.role) == worker.role for other in self.states.values())

    def drain(self, name: str, next_role: str) -> None:
        """Drain a worker; afterwards it takes next_role, or ends if that is GONE. Raises ValueError, one line, if it cannot."""
        worker = self.states.get(name)
        if worker is None:
            raise ValueError(f"there is no worker {name}; there are {', '.join(sorted(self.states))}")
        if next_role != GONE:
            check_role(next_role)
        if next_role != worker.role and self.is_last(name):
            raise ValueError(f"worker {name} is the last one for {worker.role}; start another one first")
        if worker.phase != "ready":
            raise ValueError(f"worker {name} is {worker.phase}; it can change when it is ready")
        if next_role != worker.role:
            worker.phase, worker.next_role = "draining", next_role

    def drained(self, name: str) -> None:
        """Change the role of a worker that holds no request's data any more, or end it."""
        worker = self.states[name]
        if worker.next_role == GONE:
            del self.states[name]
            worker.process.end()
            return
        self.tell(name, ChangeRole(worker.next_role))
        worker.role, worker.next_role, worker.phase, worker.address = worker.next_role, "", "starting", ""
        worker.since_s = time.monotonic()

    def restore(self, name: str, role: str) -> None:
        """Between two runs, when the worker holds no request's data: return it to this role. It reports Ready later."""
        self.states[name].next_role = role
        self.drained(name)

    def watch(self) -> None:
        """Kill workers that have been silent, or have been starting, for too long. A starting worker may be silent for longer."""
        now_s = time.monotonic()
        for worker in self.states.values():
            if worker.phase == "starting" and now_s - worker.since_s > START_S:
                worker.process.kill(f"was not ready after {START_S:.0f} s")
            else:
                worker.process.watch(now_s, START_SILENCE_S if worker.phase == "starting" else SILENCE_S)

    def lost(self, name: str) -> WorkerDied:
        """Drop a worker whose process has ended; returns the error that says how it ended."""
        worker = self.states.pop(name)
        death = worker.process.death()
        worker.process.end(ask=False)
        return death

    def close(self, ask: bool = True) -> None:
        """End all workers. ask: let each worker finish its computation first."""
        for worker in self.states.values():
            worker.process.end(ask)
        self.states.clear()


def check_role(role: str) -> None:
    if role not in ROLES:
        raise ValueError(f"there is no role {role!r}; it must be one of {', '.join(ROLES)}")


def core_of(name: str, number: int) -> int:
    """The core of worker number `number`; cores are shared only if there are too few. p0 and d0 never share one of several."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[{"p0": 0, "d0": 1}.get(name, number) % len(cores)]

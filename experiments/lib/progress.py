"""The progress bars of a verb, one for each long step: how much is done, for how long, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(frozen=True, slots=True)
class Bar:
    """A progress bar.

    update : sets done of total.
    step : names the step that begins; with a number of steps given, it also counts those that are done.
    share : sets the share that is done, where the work has no natural unit.
    """

    progress: Progress
    task: TaskID
    name: str

    def update(self, done: int, total: int) -> None:
        self.progress.update(self.task, completed=done, total=total)

    def step(self, name: str) -> None:
        begun = self.progress.tasks[self.task].fields["begun"]
        self.progress.update(self.task, description=f"{self.name}: {name}", completed=begun, begun=begun + 1)

    def share(self, share: float, name: str = "") -> None:
        total = self.progress.tasks[self.task].total or 1.0
        self.progress.update(self.task, description=f"{self.name}: {name}" if name else self.name, completed=round(share * total, 1))


TENTHS = 10


@dataclass(slots=True)
class Pace:
    """How long the rest of some work takes, judged by what is done of it.

    Parameters
    ----------
    total : the whole work, in any unit of which the time is about a multiple, such as tokens.
    """

    total: float
    clock: Callable[[], float] = time.monotonic
    _began_s: float = field(init=False)
    _done: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._began_s = self.clock()

    def add(self, work: float) -> str | None:
        """After a piece of work: one line to print after the first piece and after each tenth of the whole, else None."""
        before, self._done = self._done, self._done + work
        if before and int(TENTHS * before / self.total) == int(TENTHS * self._done / self.total):
            return None
        elapsed_s = self.clock() - self._began_s
        left_s = elapsed_s * max(0.0, self.total - self._done) / self._done
        return f"{self._done / self.total:.0%} done in {duration(elapsed_s)}, about {duration(left_s)} left"


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


@contextmanager
def bar(name: str, total: int | None = None) -> Iterator[Bar]:
    """A bar that is full when the work ends without an error. total: number of steps, None where it is unknown."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as shown:
        task = shown.add_task(name, total=total, begun=0)
        yield Bar(shown, task, name)
        done = shown.tasks[task]
        shown.update(task, completed=done.total if done.total is not None else done.fields["begun"], description=name)

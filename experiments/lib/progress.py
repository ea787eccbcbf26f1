"""The progress bars of a verb, one for each long step: how much is done, for how long, and how long it will take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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

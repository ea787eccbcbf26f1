"""The progress bars of a verb, one for each long step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(frozen=True, slots=True)
class Bar:
    """A progress bar. update: sets done of total. step: names the current step, where the number of steps is unknown."""

    progress: Progress
    task: TaskID
    name: str

    def update(self, done: int, total: int) -> None:
        self.progress.update(self.task, completed=done, total=total)

    def step(self, name: str) -> None:
        self.progress.update(self.task, description=f"{self.name}: {name}", advance=1)


@contextmanager
def bar(name: str, total: int | None = None) -> Iterator[Bar]:
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"), TimeElapsedColumn(), TimeRemainingColumn()
    ) as shown:
        yield Bar(shown, shown.add_task(name, total=total), name)

"""Chains of tasks: the next task of a chain depends on what the last one gave. Chains run beside each other, and the tasks in a pool.

A chain is a generator. It yields a task, is sent what the task gave, and returns its result. A search is such a chain, and so is a single
simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from experiments.sweeps.point import reason, run_points
from experiments.sweeps.pools import Pool, PoolSpec, open_pool

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Task:
    """A call of a function that another process can import. named: its keywords, which can be pickled."""

    work: Callable[..., Any]
    named: Mapping[str, Any]


Chain = Generator[Task, Any, R]


def run_chains(chains: Mapping[str, Chain[R]], pool: Pool, done: Callable[[str, R], None], step: Callable[[], None] | None = None) -> None:
    """Run all chains to their ends, as many at a time as the pool has slots.

    Parameters
    ----------
    chains : name -> chain. What its task raises is raised at its `yield`.
    pool : an open pool.
    done : called with (name, result) when a chain ends, in this thread.
    step : called after each task, in this thread.
    """
    running: dict[Future[Any], str] = {}
    waiting = list(chains)[::-1]

    def advance(name: str, resume: Callable[[], Task]) -> None:
        try:
            task = resume()
        except StopIteration as end:
            done(name, end.value)
        else:
            running[pool.submit(task.work, **task.named)] = name

    while waiting or running:
        while waiting and len(running) < pool.slots:
            name = waiting.pop()
            advance(name, lambda chain=chains[name]: next(chain))  # type: ignore[misc]
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            name = running.pop(future)
            chain, error = chains[name], future.exception()
            if step is not None:
                step()
            if error is None:
                advance(name, lambda chain=chain, future=future: chain.send(future.result()))  # type: ignore[misc]
            else:
                advance(name, lambda chain=chain, error=error: chain.throw(error))  # type: ignore[misc]


def run_all(
    tasks: Mapping[str, Mapping[str, Any]], spec: PoolSpec, folder: Path, done: Callable[[str, dict[str, Any] | str], None]
) -> None:
    """Run points that do not depend on each other.

    Parameters
    ----------
    tasks : name -> keywords of run_point.
    spec : the pool.
    folder : the folder of results.
    done : called with (name, figures or error) when a point has ended.
    """
    if not tasks:
        return
    names, size = list(tasks), spec.piece(len(tasks))
    pieces = {piece[0]: piece for piece in (names[i : i + size] for i in range(0, len(names), size))}

    def finished(first: str, found: list[dict[str, Any] | str]) -> None:
        for name, figures in zip(pieces[first], found, strict=True):
            done(name, figures)

    with open_pool(spec, len(pieces), folder) as pool:
        run_chains({first: _piece([tasks[name] for name in piece]) for first, piece in pieces.items()}, pool, finished)


def _piece(tasks: Sequence[Mapping[str, Any]]) -> Chain[list[dict[str, Any] | str]]:
    try:
        return (yield Task(run_points, {"tasks": tasks}))
    except Exception as error:  # noqa: BLE001  # its process died: that is recorded, and the others still run
        return [reason(error)] * len(tasks)

"""`abkt sweep`: a grid of simulations in one pool of processes, resumable, with one table at the end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import abkt
from experiments.lib.config import read
from experiments.lib.errors import RunError
from experiments.lib.manifest import config_hash, file_hash, write_manifest
from experiments.lib.progress import bar
from experiments.lib.results import plain, write_json
from experiments.lib.stamps import write_stamped
from experiments.lib.verb import MULTIRUN, VerbCall, verb
from experiments.sweeps.grid import Axis, GridPoint, axes, is_axis, points
from experiments.sweeps.journal import Journal, table
from experiments.sweeps.pool import run_all
from experiments.verbs.simulate import SimulateConfig, inputs

if TYPE_CHECKING:
    from pydantic import ConfigDict

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """grid, also: axes as overrides with several values, the second of one name winning. workers: processes; None is one a core.

    The simulation's own keys are read from each point; here they are only let through.
    """

    grid: list[str]
    also: list[str]
    workers: int | None
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "ignore"}

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}; it must be at least 1, or null for one a core")


@verb("sweep")
def _sweep(config: SweepConfig, run: VerbCall) -> None:
    rows = sweep(config, run)
    write_stamped(run.out / "sweep.parquet", table(rows), run)
    failed = [row for row in rows if row["error"]]
    axes_of = {axis.name: axis.values for axis in grid_of(config, run)}
    write_json(run.out / "sweep.json", {"schema_version": SCHEMA_VERSION, "axes": axes_of, "points": len(rows), "failed": len(failed)})
    write_manifest(run)
    print(f"{len(rows)} points: {run.out / 'sweep.parquet'}")
    if failed:
        raise RunError(f"{len(failed)} of {len(rows)} points failed, the first because of {failed[0]['error']} (column error of the table)")


def main(arguments: Sequence[str]) -> None:
    """Several values on the command line are axes of the one grid; with -m they are Hydra's, and each of its jobs is a sweep."""
    if any(argument in MULTIRUN for argument in arguments):
        return _sweep(arguments)
    words = [argument for argument in arguments if is_axis(argument)]
    quoted = ", ".join('"{}"'.format(word.replace("\\", "\\\\").replace('"', '\\"')) for word in words)
    return _sweep([argument for argument in arguments if argument not in words] + ([f"also=[{quoted}]"] if words else []))


def sweep(config: SweepConfig, run: VerbCall) -> list[dict[str, Any]]:
    """Runs what the journal in run.out does not have yet, and what failed before; all rows in the grid's order.

    Raises ValueError, one line, before anything is made, where an axis does not exist or a point cannot be had.
    """
    grid = grid_of(config, run)
    if not grid:
        raise ValueError("the sweep has no axis: give a key several values, such as seed=0,1,2, or an experiment=NAME")
    by_hash = {point_hash(point): point for point in points("sweep", base(run.arguments), grid)}
    workers = config.workers or os.cpu_count() or 1
    journal = Journal(run.out / "points.jsonl")
    known = journal.rows()
    todo = {name: {"config": point.config, "out": None} for name, point in by_hash.items() if known.get(name, {}).get("error") != ""}
    print(plan_line(grid, len(by_hash), len(todo), workers))
    run.out.mkdir(parents=True, exist_ok=True)
    journal.mend()
    finished = len(by_hash) - len(todo)
    with bar("sweep", len(by_hash)) as progress:
        progress.update(finished, len(by_hash))

        def done(name: str, figures: dict[str, Any] | str) -> None:
            nonlocal finished
            known[name] = row(name, by_hash[name], figures)
            journal.add(known[name])
            finished += 1
            progress.update(finished, len(by_hash))

        run_all(todo, workers, done)
    return [{**known[name], **point.place} for name, point in by_hash.items()]


def grid_of(config: SweepConfig, run: VerbCall) -> tuple[Axis, ...]:
    return axes("sweep", [*config.grid, *config.also], base(run.arguments))


def row(name: str, point: GridPoint, figures: Mapping[str, Any] | str) -> dict[str, Any]:
    """Of the journal and the table. figures: of the summary, flat, or why there are none."""
    found = {"error": figures} if isinstance(figures, str) else {"error": "", **figures}
    return dict(plain({"point": name, **point.place, **found}))


def base(arguments: Sequence[str]) -> list[str]:
    """The overrides that every point has: all but those of the sweep itself."""
    return [argument for argument in arguments if not argument.startswith(("also=", "grid=", "out=", "workers="))]


def point_hash(point: GridPoint) -> str:
    """Of the configuration, the contents of the files that it reads, and the version of abkt."""
    config = read(SimulateConfig, {**point.config, "progress": False, "out": Path()})
    files = [_file_hash(path) for path in inputs(config) if path.is_file()]
    return config_hash([abkt.__version__, plain(point.config), files])


def plan_line(grid: Sequence[Axis], count: int, todo: int, workers: int) -> str:
    """What will run."""
    spans = " x ".join(f"{len(axis.values)} {axis.name}" for axis in grid)
    kept = f", {count - todo} of them done before" if todo < count else ""
    return f"plan: {count} simulations ({spans}){kept}, in {min(workers, max(1, todo))} processes"


@lru_cache
def _file_hash(path: Path) -> str:
    return file_hash(path)

"""A sweep: it chooses the points of a grid that have to run, runs them, and keeps one row for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import abkt
from abkt.ranges import bound
from experiments.lib.config import read
from experiments.lib.manifest import code_hash, config_hash, file_hash, policy_files
from experiments.lib.progress import bar
from experiments.lib.results import plain
from experiments.lib.simulation import SimulateConfig, simulation_files
from experiments.lib.verb import VerbCall
from experiments.sweeps.chains import run_all
from experiments.sweeps.grid import Axis, GridPoint, axes, points
from experiments.sweeps.journal import Journal
from experiments.sweeps.pools import PoolSpec

if TYPE_CHECKING:
    from pydantic import ConfigDict


OWN = ("also=", "csv=", "grid=", "max_distortion=", "out=", "plot=", "workers=", "pool=", "pool_options")  # overrides of the sweep itself


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """grid, also: axes, as overrides with several values; of two with the same name the second wins. pool, workers, pool_options: see
    PoolSpec.

    max_distortion: limit of mean distortion that a winner keeps. plot, csv: also write report.html, and the table as CSV.

    The simulation's own keys are allowed here and are read for each point.
    """

    grid: list[str]
    also: list[str]
    workers: int | None
    max_distortion: float
    plot: bool
    csv: bool
    out: Path
    pool: str = "processes"
    pool_options: dict[str, Any] | None = None
    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "ignore"}

    def __post_init__(self) -> None:
        bound(self, "max_distortion", above=0)
        self.spec()

    def spec(self) -> PoolSpec:
        return PoolSpec(self.pool, self.workers, self.pool_options or {})


def sweep(config: SweepConfig, run: VerbCall) -> list[dict[str, Any]]:
    """Run the points that the journal in run.out does not have, or has as failed. Returns all rows in the grid's order.

    Raises
    ------
    ValueError
        One line, before anything is written, where an axis does not exist or a point cannot be configured.
    """
    grid = grid_of(config, run)
    if not grid:
        raise ValueError("the sweep has no axis: give a key several values, such as seed=0,1,2, or an experiment=NAME")
    by_hash = {point_hash(point): point for point in points("sweep", base(run.arguments), grid)}
    journal = Journal(run.out / "points.jsonl")
    known = journal.rows()
    todo = {name: {"config": point.config, "out": None} for name, point in by_hash.items() if known.get(name, {}).get("error") != ""}
    print(plan_line(grid, len(by_hash), len(todo), config.spec()))
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

        run_all(todo, config.spec(), run.out, done)
    return [{**known[name], **point.place} for name, point in by_hash.items()]


def grid_of(config: SweepConfig, run: VerbCall) -> tuple[Axis, ...]:
    return axes("sweep", [*config.grid, *config.also], base(run.arguments))


def row(name: str, point: GridPoint, figures: Mapping[str, Any] | str) -> dict[str, Any]:
    """A row of the journal and of the table. figures: the flat summary, or the error where there is none."""
    found = {"error": figures} if isinstance(figures, str) else {"error": "", **figures}
    return dict(plain({"point": name, **point.place, **found}))


def base(arguments: Sequence[str]) -> list[str]:
    """The overrides that every point has: all but those of the sweep itself."""
    return [argument for argument in arguments if not argument.startswith(OWN)]


def point_hash(point: GridPoint) -> str:
    """Identifies a point: its configuration, the files that it reads, the version of abkt, and the code that computes it.

    So a point is computed again if the code of abkt, of sim, or of a user's policy has changed.
    """
    config = read(SimulateConfig, {**point.config, "progress": False, "out": Path()})
    files = [_file_hash(path) for path in (*simulation_files(config), *policy_files(point.config)) if path.is_file()]
    return config_hash([abkt.__version__, code_hash(), plain(point.config), files])


def plan_line(grid: Sequence[Axis], count: int, todo: int, pool: PoolSpec) -> str:
    """One line: the number of simulations, the axes, and where they run."""
    spans = " x ".join(f"{len(axis.values)} {axis.name}" for axis in grid)
    kept = f", {count - todo} of them done before" if todo < count else ""
    return f"plan: {count} simulations ({spans}){kept}, {pool.where(todo)}"


@lru_cache
def _file_hash(path: Path) -> str:
    return file_hash(path)

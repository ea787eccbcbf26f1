"""Runs the sweeps of conf/experiment from within another verb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.lib.errors import RunError
from experiments.lib.results import write_table
from experiments.lib.verb import VerbCall
from experiments.sweeps.journal import table
from experiments.sweeps.run import SweepConfig, sweep


@dataclass(frozen=True, slots=True)
class Experiments:
    """out: folder with a subfolder for each experiment, which resumes there like any sweep."""

    out: Path
    workers: int | None

    def run(self, name: str, *overrides: str) -> pd.DataFrame:
        """The points of an experiment. Raises ValueError where it does not exist, RunError where a point failed."""
        arguments = (f"experiment={name}", *overrides)
        composed = compose("sweep", arguments)
        folder = self.out / name
        config = read(SweepConfig, {**composed.config, "out": folder, "workers": composed.config["workers"] or self.workers})
        rows = sweep(config, VerbCall("sweep", arguments, composed.config, composed.choices, folder))
        if failed := [row for row in rows if row["error"]]:
            raise RunError(f"{len(failed)} points of {name} failed, the first because of {failed[0]['error']}")
        made = table(rows)
        write_table(folder / "sweep.parquet", made)
        return made.to_pandas()


def means(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Means over seeds of all numbers, for each combination of the columns `by`."""
    figures = [name for name in rows if rows[name].dtype.kind in "fi" and name not in by]
    return rows.groupby(by, sort=False)[figures].mean().reset_index()

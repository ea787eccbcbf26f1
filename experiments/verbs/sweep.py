"""`abkt sweep`: a grid of simulations in one pool of processes, resumable, with one table at the end."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.lib.compose import check_once, quoted
from experiments.lib.errors import RunError
from experiments.lib.manifest import write_manifest
from experiments.lib.results import write_json
from experiments.lib.stamps import write_stamped
from experiments.lib.verb import MULTIRUN, VerbCall, verb
from experiments.sweeps.grid import is_axis
from experiments.sweeps.journal import table
from experiments.sweeps.run import SweepConfig, grid_of, sweep

SCHEMA_VERSION = 1


@verb("sweep", resumes=("points.jsonl",))
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
    check_once(arguments)
    words = [argument for argument in arguments if is_axis(argument)]
    also = [f"also=[{', '.join(map(quoted, words))}]"] if words else []
    return _sweep([argument for argument in arguments if argument not in words] + also)

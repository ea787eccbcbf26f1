"""`abkt sweep`: a grid of simulations in one pool of processes, resumable, with one table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from experiments.lib.compose import check_once, quoted
from experiments.lib.errors import RunError
from experiments.lib.manifest import manifest
from experiments.lib.results import write_csv, write_json
from experiments.lib.stamps import write_stamped
from experiments.lib.verb import MULTIRUN, VerbCall, verb
from experiments.report import words
from experiments.report.page import origin, write_page
from experiments.report.terminal import show_lines, show_table, show_verdict
from experiments.report.verdict import Verdict
from experiments.sweeps import report, winner
from experiments.sweeps.grid import is_axis
from experiments.sweeps.journal import table
from experiments.sweeps.run import SweepConfig, grid_of, sweep

SCHEMA_VERSION = 2
MOST_ROWS = 24  # of the table on the terminal


@verb("sweep", resumes=("points.jsonl",))
def _sweep(config: SweepConfig, run: VerbCall) -> None:
    rows = sweep(config, run)
    write_stamped(run.out / "sweep.parquet", table(rows), run)
    if config.csv:
        write_csv(run.out / "sweep.parquet")
    failed = [row for row in rows if row["error"]]
    axes_of = {axis.name: axis.values for axis in grid_of(config, run)}
    names = list(axes_of)
    found = winner.contests(rows, names, config.max_distortion)
    verdict = winner.whole(found, names)
    stated = {"axes": axes_of, "points": len(rows), "failed": len(failed), "verdict": asdict(verdict) if verdict else None}
    write_json(run.out / "sweep.json", {"schema_version": SCHEMA_VERSION, **stated})
    made = manifest(run)
    write_json(run.out / "manifest.json", made)
    if found:
        _show(found, names, verdict)
        if config.plot:
            slo = run.config["slo"] if not any(name.partition(".")[0] == "slo" for name in names) else None
            lead = f"{words.plural(len(rows), 'simulation')}" + (f", of which {len(failed)} failed" if failed else "")
            drawn = report.page(found, names, verdict, f"{lead}.", slo, origin(made))
            print(f"report: {write_page(run.out / 'report.html', drawn)}")
    print(f"{len(rows)} points: {run.out / 'sweep.parquet'}")
    if failed:
        raise RunError(f"{len(failed)} of {len(rows)} points failed, the first because of {failed[0]['error']} (column error of the table)")


def _show(found: Sequence[winner.Contest], names: Sequence[str], verdict: Verdict | None) -> None:
    made = report.short_table(found, names)
    show_table(replace(made, rows=made.rows[:MOST_ROWS]))
    if len(made.rows) > MOST_ROWS:
        show_lines([f"{len(made.rows) - MOST_ROWS} more rows are in report.html"])
    if verdict is None:
        show_lines([report.no_contest(names)])
    else:
        show_verdict(verdict)


def main(arguments: Sequence[str]) -> None:
    """Several values on the command line are axes of the one grid; with -m they are Hydra's, and each of its jobs is a sweep."""
    if any(argument in MULTIRUN for argument in arguments):
        return _sweep(arguments)
    check_once(arguments)
    words = [argument for argument in arguments if is_axis(argument)]
    also = [f"also=[{', '.join(map(quoted, words))}]"] if words else []
    return _sweep([argument for argument in arguments if argument not in words] + also)

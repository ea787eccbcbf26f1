"""`abkt capacity`: the highest rate that a cluster holds within the SLO, for each bitrate policy."""

from __future__ import annotations

from experiments.capacity.answer import answer
from experiments.capacity.page import draw, page, plain, table
from experiments.capacity.run import CapacityConfig, find_knees, plan_line, prepare
from experiments.figures.style import save, sheet
from experiments.lib.manifest import manifest
from experiments.lib.results import write_csv, write_json
from experiments.lib.simulation import simulation_files
from experiments.lib.stamps import write_table_stamped
from experiments.lib.verb import VerbCall, verb
from experiments.report.page import WIDE_IN, origin, write_page
from experiments.report.terminal import show_table, show_verdict
from experiments.sweeps.journal import table as columns


@verb("capacity")
def main(config: CapacityConfig, run: VerbCall) -> None:
    made, simulated, parts, start_per_s = prepare(config, run)
    print(plan_line(config, run.choices, simulated, parts))
    result = find_knees(config, made, parts, start_per_s, run.out)
    verdict = answer(result.knees, config.tolerance, config.requests, simulated.slo.ttft_s)
    about = manifest(run, simulation_files(simulated))
    write_table_stamped(run.out / "runs.parquet", columns(result.rows), about)
    write_json(run.out / "capacity.json", plain(result, verdict, config))
    if config.csv:
        write_csv(run.out / "runs.parquet")
    write_json(run.out / "manifest.json", about)
    if config.plot:
        if result.curves:
            with sheet():
                save(draw(result, WIDE_IN), run.out, "goodput")
        write_page(run.out / "report.html", page(config, simulated, run.choices, result, verdict, origin(about)))
    show_table(table(result, config, verdict, simulated.slo.ttft_s))
    show_verdict(verdict)
    print(f"results: {run.out}")

"""`abkt plan`: the cheapest split into prefill and decode instances, and the bitrate policy, that meet the SLO."""

from __future__ import annotations

from experiments.lib.manifest import manifest
from experiments.lib.results import write_csv, write_json
from experiments.lib.simulation import simulation_files
from experiments.lib.stamps import write_table_stamped
from experiments.lib.verb import VerbCall, verb
from experiments.planning.page import answer, page, plain, rows, table
from experiments.planning.run import PlanConfig, plan_line, prepare, search
from experiments.report.page import origin, write_page
from experiments.report.terminal import show_table, show_verdict
from experiments.sweeps.journal import table as columns


@verb("plan")
def main(config: PlanConfig, run: VerbCall) -> None:
    prepared = prepare(config, run)
    lead = plan_line(config, run.choices, prepared)
    print(f"plan: {lead}")
    choices = search(config, prepared, run.out)
    verdict = answer(choices)
    about = manifest(run, simulation_files(prepared.one))
    write_table_stamped(run.out / "runs.parquet", columns(rows(choices)), about)
    write_json(run.out / "plan.json", plain(config, choices, verdict))
    write_json(run.out / "manifest.json", about)
    if config.csv:
        write_csv(run.out / "runs.parquet")
    if config.plot:
        write_page(run.out / "report.html", page(config, lead, choices, prepared, verdict, origin(about)))
    show_table(table(choices, prepared, verdict))
    show_verdict(verdict)
    print(f"results: {run.out}")

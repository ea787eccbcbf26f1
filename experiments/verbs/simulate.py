"""`abkt simulate`: run a simulated cluster and write its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from abkt.profile.roofline import GpuSpec
from experiments.lib.config import MeasuredHardware
from experiments.lib.manifest import manifest
from experiments.lib.record_writer import NAMES, RecordWriter
from experiments.lib.results import write_csv, write_json, write_pieces
from experiments.lib.simulation import (  # fmt: skip
    SimulateConfig,
    build_simulation,
    node_errors,
    rate_curves,
    run_simulation,
    simulation_files,
    write_summary,
)
from experiments.lib.verb import VerbCall, verb
from experiments.lib.workload import read_workload, workload_words
from experiments.report import words
from experiments.report.run import RunReport, show_run, write_run
from sim.perfetto import chrome_trace
from sim.workload.requests import Request


@verb("simulate")
def main(config: SimulateConfig, run: VerbCall) -> None:
    requests, scaling = read_workload(config.workload, config.seed, closed_loop=True)
    simulation = build_simulation(config, requests)
    plan = plan_line(config, run.choices, requests, workload_words(run.choices["workload"], scaling))
    print(f"plan: {plan}")
    errors = node_errors(simulation.cluster)
    with RecordWriter(run.out, errors) as writer:
        result = run_simulation(simulation, config.progress, drain=None if config.trace else writer.drain)
        writer.add(result.requests, result.transfers)
    if config.trace:
        write_pieces(run.out / "trace.json", chrome_trace(result.requests, result.transfers))
    if config.csv:
        for name in NAMES:
            write_csv(run.out / name)
    chosen = {"bitrate": run.choices["bitrate"], "routing": run.choices["routing"]}
    curves = rate_curves(simulation.cluster)
    summary = write_summary(run.out, config.slo, result.wall_s, curves, errors, config.curves, **chosen, scaling=scaling)
    made = manifest(run, simulation_files(config))
    write_json(run.out / "manifest.json", made)
    title = f"Simulation of {words.plural(len(requests), 'request')}, bitrate {chosen['bitrate']}"
    report = RunReport(title, plan, summary, config.slo, RANGES[simulation.nodes.all[0].costs.profile.source])
    show_run(report)
    if config.plot:
        print(f"report: {write_run(run.out, report, made)}")
    print(f"results: {run.out}")


def plan_line(config: SimulateConfig, choices: Mapping[str, str], requests: Sequence[Request], whose: str) -> str:
    """One line: the requests and whose they are, the cluster, and the simulated time that they cover."""
    cluster, clients = config.cluster, config.workload.concurrency
    pace = f"of {clients} clients in a closed loop" if clients else f"over {words.seconds(requests[-1].arrival_s)}"
    on = _hardware(config.hardware)
    if config.decode_hardware is not None:
        on = f"{on} to prefill, {_hardware(config.decode_hardware)} to decode"
    return (
        f"{len(requests):,} requests {pace} ({whose}), "
        f"{config.model.name} on {cluster.prefill}P{cluster.decode}D ({on}), "
        f"each node on {words.link(config.network.capacity(), config.network.delay_s)} ({choices['network']}), "
        + ", ".join(
            f"{group} {choices[group]}" for group in ("bitrate", "routing", "roles", "admission", "engine", "transport") if group in choices
        )
    )


def _hardware(hardware: GpuSpec | MeasuredHardware) -> str:
    return "as profiled" if isinstance(hardware, MeasuredHardware) else f"{hardware.gpus} x {hardware.name} each, not validated on hardware"


# Source of a profile -> whose range a request may lie outside of.
RANGES = {
    "measured": "the profile has measured",
    "published": "the published kernel tables cover",
    "roofline": "the data sheet's costs cover",
}

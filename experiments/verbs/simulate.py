"""`abkt simulate`: run a simulated cluster and write its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from abkt.profile.roofline import GpuSpec
from experiments.lib.config import MeasuredHardware
from experiments.lib.manifest import write_manifest
from experiments.lib.record_writer import RecordWriter
from experiments.lib.results import write_pieces
from experiments.lib.simulation import (  # fmt: skip
    SimulateConfig,
    build_simulation,
    clock,
    node_errors,
    rate_curves,
    run_simulation,
    simulation_files,
    write_summary,
)
from experiments.lib.verb import VerbCall, verb
from experiments.lib.workload import read_workload, workload_words
from sim.perfetto import chrome_trace
from sim.workload.requests import Request


@verb("simulate")
def main(config: SimulateConfig, run: VerbCall) -> None:
    requests, scaling = read_workload(config.workload, config.seed, closed_loop=True)
    simulation = build_simulation(config, requests)
    print(plan_line(config, run.choices, requests, workload_words(run.choices["workload"], scaling)))
    errors = node_errors(simulation.cluster)
    with RecordWriter(run.out, errors) as writer:
        result = run_simulation(simulation, config.progress, drain=None if config.trace else writer.drain)
        writer.add(result.requests, result.transfers)
    if config.trace:
        write_pieces(run.out / "trace.json", chrome_trace(result.requests, result.transfers))
    chosen = {"bitrate": run.choices["bitrate"], "routing": run.choices["routing"]}
    summary = write_summary(run.out, config.slo, result.wall_s, rate_curves(simulation.cluster), errors, **chosen, scaling=scaling)
    write_manifest(run, simulation_files(config))
    show(summary, simulation.cluster.prefill[0].profile.source)
    print(f"results: {run.out}")


def plan_line(config: SimulateConfig, choices: Mapping[str, str], requests: Sequence[Request], whose: str) -> str:
    """One line: the requests and whose they are, the cluster, and the simulated time that they cover."""
    cluster, clients = config.cluster, config.workload.concurrency
    pace = f"of {clients} clients in a closed loop" if clients else f"over {clock(requests[-1].arrival_s)}"
    on = _hardware(config.hardware)
    if config.decode_hardware is not None:
        on = f"{on} to prefill, {_hardware(config.decode_hardware)} to decode"
    return (
        f"plan: {len(requests):,} requests {pace} ({whose}), "
        f"{config.model.name} on {cluster.prefill}P{cluster.decode}D ({on}), "
        f"links of {config.network.gbps:g} Gbit/s ({choices['network']}), "
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


def show(summary: Mapping[str, Any], source: str = "measured") -> None:
    """source: of the profile that the costs are from."""
    from rich.console import Console
    from rich.table import Table

    counts = summary["requests"]
    title = ", ".join(f"{counts[name]:,} {name}" for name in ("completed", "rejected", "failed")) + f" in {summary['wall_s']:.1f} s"
    table = Table(title=title, title_justify="left")
    for heading in ("seconds", "mean", "p50", "p90", "p99"):
        table.add_column(heading, justify="left" if heading == "seconds" else "right")
    for name in ("ttft_s", "tpot_s", "e2e_s", "transfer_exposed_s"):
        table.add_row(name.removesuffix("_s"), *(f"{summary[name][q]:.3f}" for q in ("mean", "p50", "p90", "p99")))
    console = Console(soft_wrap=True)
    console.print(table)
    distortion = summary["distortion"]
    console.print(
        f"goodput {summary['goodput_per_s']:.3g} of {summary['throughput_per_s']:.3g} requests/s, "
        f"{summary['good_share']:.1%} within the SLO, cost {summary['cost_usd']:.4g} USD, "
        f"{summary['wire_bytes'] / 1e9:.4g} of {summary['raw_bytes'] / 1e9:.4g} GB sent"
    )
    if distortion:
        console.print(f"distortion mean {distortion['mean']:.4g}, p99 {distortion['p99']:.4g}")
    if "prediction" in summary:
        known, unknown = summary["prediction"], ", ".join(summary["prediction"]["error_unknown"])
        console.print(
            f"95 % of predictions: TTFT ± {known['ttft_half_width_s']:.3f} s, E2E ± {known['e2e_half_width_s']:.3f} s on average"
            + (f"; the error of {unknown} was not measured" if unknown else "")
        )
    if summary["extrapolated_share"]:
        console.print(f"{summary['extrapolated_share']:.1%} of the requests lie outside the range that {RANGES[source]}")

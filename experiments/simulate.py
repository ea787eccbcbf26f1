"""`abkt simulate`: a cluster in the model, from configuration to records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Discriminator, Tag

from abkt.capacity import Capacity
from abkt.policy.build import build
from abkt.profile.expect import ask_once
from abkt.records import SLO, summarize
from abkt.spec import ModelSpec
from experiments.config import STRICT, ClusterConfig, Hardware, Instance, MeasuredHardware, instance, kind_of
from experiments.manifest import write_manifest
from experiments.network import Network
from experiments.network import inputs as network_inputs
from experiments.results import write_json, write_records
from experiments.verb import Run, verb
from sim.cluster import Cluster, NodeSpec, Simulation, SimulationResult
from sim.traces import read_trace
from sim.workload import Request, Scaling, poisson, scale

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True, slots=True)
class TraceWorkload:
    """A trace file, cut to size."""

    path: Path
    format: str
    scaling: Scaling


@dataclass(frozen=True, slots=True)
class PoissonWorkload:
    """Arrivals at random; see sim.workload.poisson."""

    requests: int
    rate_per_s: float
    isl: int
    osl: int
    variation: float


Workload = Annotated[
    Annotated[TraceWorkload, Tag("TraceWorkload")] | Annotated[PoissonWorkload, Tag("PoissonWorkload")],
    Discriminator(lambda value: kind_of(value, "path", "TraceWorkload", "PoissonWorkload")),
]


@dataclass(frozen=True, slots=True)
class SimulateConfig:
    """bitrate, routing: configurations of policies, as abkt.policy.build takes them; every pair of nodes gets a bitrate policy."""

    model: ModelSpec
    hardware: Hardware
    cluster: ClusterConfig
    network: Network
    workload: Workload
    bitrate: dict[str, Any]
    routing: dict[str, Any]
    slo: SLO
    seed: int
    curves: Path
    progress: bool
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@verb("simulate")
def main(config: SimulateConfig, run: Run) -> None:
    requests, scaling = read_workload(config.workload, config.seed)
    simulation = build_simulation(config, requests)
    print(plan_line(config, run.choices, requests))
    result = run_simulation(simulation, config.progress)
    summary = write_result(run.out, result, config.slo, bitrate=run.choices["bitrate"], routing=run.choices["routing"], scaling=scaling)
    write_manifest(run, inputs(config))
    show(summary)
    print(f"results: {run.out}")


def read_workload(workload: TraceWorkload | PoissonWorkload, seed: int) -> tuple[list[Request], dict[str, float]]:
    """The requests in order of arrival, and what scaling did to them (nothing to synthetic ones)."""
    if isinstance(workload, PoissonWorkload):
        return poisson(workload.requests, workload.rate_per_s, workload.isl, workload.osl, workload.variation, seed), {}
    return scale(read_trace(workload.path.expanduser(), workload.format, seed), workload.scaling)


def build_simulation(config: SimulateConfig, requests: Sequence[Request]) -> Simulation:
    """Raises ValueError, one line, where profile, curves, policies or cluster cannot be had."""
    one = instance(config.hardware, config.model, config.curves)
    ask_once(build(config.bitrate), one.profile)  # a policy that cannot work is bad input now, not when nodes meet
    nic = config.network.capacity()
    cluster = Cluster(
        prefill=_nodes("prefill", config.cluster.prefill, one, nic),
        decode=_nodes("decode", config.cluster.decode, one, nic),
        max_batch=config.cluster.max_batch,
        usd_per_gb=config.network.egress_usd_per_gb,
        delay_s=config.network.delay_s,
    )
    return Simulation(cluster, requests, bitrate=lambda: build(config.bitrate), routing=build(config.routing), slo=config.slo)


def _nodes(role: str, count: int, one: Instance, nic: Capacity) -> tuple[NodeSpec, ...]:
    return tuple(NodeSpec(f"{role}-{i}", one.profile, one.kv_tokens, nic, one.usd_per_hour) for i in range(count))


def plan_line(config: SimulateConfig, choices: Mapping[str, str], requests: Sequence[Request]) -> str:
    """What will run, on what, and for how long in simulated time."""
    cluster, hardware = config.cluster, config.hardware
    on = "as profiled" if isinstance(hardware, MeasuredHardware) else f"{hardware.gpus} x {hardware.name} each, not validated on hardware"
    return (
        f"plan: {len(requests):,} requests over {_clock(requests[-1].arrival_s)} ({choices['workload']}), "
        f"{config.model.name} on {cluster.prefill}P{cluster.decode}D ({on}), "
        f"links of {config.network.gbps:g} Gbit/s ({choices['network']}), bitrate {choices['bitrate']}, routing {choices['routing']}"
    )


def run_simulation(simulation: Simulation, progress: bool, title: str = "simulating") -> SimulationResult:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[clock]} simulated"))
    with Progress(*columns, TimeElapsedColumn(), disable=not progress) as bar:
        task = bar.add_task(title, total=len(simulation.requests), clock="0:00:00")

        def show_progress(done: int, total: int, now_s: float) -> None:
            bar.update(task, completed=done, total=total, clock=_clock(now_s))

        return simulation.run(show_progress)


def write_result(folder: Path, result: SimulationResult, slo: SLO, **facts: Any) -> dict[str, Any]:
    """The two Parquet files and summary.json, which is also returned. facts: whatever else the summary should say."""
    write_records(folder, result.requests, result.transfers)
    summary = {**summarize(result.requests, slo, result.wall_s), "validated": False, **facts}
    write_json(folder / "summary.json", summary)
    return summary


def inputs(config: SimulateConfig) -> list[Path]:
    """The files that the run reads."""
    trace = [config.workload.path.expanduser()] if isinstance(config.workload, TraceWorkload) else []
    measured = [config.hardware.profile] if isinstance(config.hardware, MeasuredHardware) else []
    return [*trace, *measured, *network_inputs(config.network), config.curves]


def show(summary: Mapping[str, Any]) -> None:
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
    if summary["extrapolated_share"]:
        console.print(f"{summary['extrapolated_share']:.1%} of the requests lie outside of what the profile has measured")


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"

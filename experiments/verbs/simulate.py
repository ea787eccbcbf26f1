"""`abkt simulate`: a cluster in the model, from configuration to records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from abkt.capacity import Capacity
from abkt.policy.build import build
from abkt.profile.expect import ask_once
from abkt.profile.roofline import GpuSpec
from abkt.records import SLO, summarize_columns
from abkt.spec import ModelSpec
from experiments.lib.config import STRICT, ClusterConfig, Hardware, Instance, MeasuredHardware, instance
from experiments.lib.curves import expected_quality
from experiments.lib.manifest import write_manifest
from experiments.lib.network import Network
from experiments.lib.network import inputs as network_inputs
from experiments.lib.record_writer import RecordWriter, read_columns
from experiments.lib.results import write_json, write_pieces
from experiments.lib.verb import VerbCall, verb
from experiments.lib.workload import Workload, read_workload, workload_files
from sim.cluster import Simulation, SimulationResult
from sim.faults import FaultPlan
from sim.interval import COLUMNS, residuals
from sim.interval import summary as prediction
from sim.network.background import Background, read_flow_sizes
from sim.network.link_faults import LinkFault
from sim.perfetto import chrome_trace
from sim.specs import ClusterSpec, EngineSpec, NodeSpec
from sim.transfer.transport import TransportModel
from sim.workload.requests import Request

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True, slots=True)
class BackgroundConfig:
    """path: a file of flow sizes. The rest: see sim.network.background; links: one path each, every node's where none is named."""

    path: Path
    load: float
    burst: int
    links: tuple[str, ...]
    seed: int

    def read(self, cluster: ClusterSpec) -> Background:
        names = self.links or tuple(node.name for node in (*cluster.prefill, *cluster.decode))
        return Background(read_flow_sizes(self.path.expanduser()), self.load, tuple((name,) for name in names), self.burst, self.seed)


@dataclass(frozen=True, slots=True)
class SimulateConfig:
    """bitrate, routing, roles, admission: configurations of policies, as abkt.policy.build takes them; every pair of nodes gets a bitrate
    policy. engine: of every node, but for max_batch, which is the cluster's. trace: write trace.json too, for ui.perfetto.dev.
    decode_hardware: of the decode nodes, where it is not that of all. link_faults, background: what happens on links besides."""

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
    trace: bool = False
    decode_hardware: Hardware | None = None
    roles: dict[str, Any] | None = None
    admission: dict[str, Any] | None = None
    engine: EngineSpec = field(default_factory=EngineSpec)
    rebuild_s: float = 0.0
    faults: FaultPlan = FaultPlan()  # noqa: RUF009  # frozen
    transport: TransportModel = field(default_factory=TransportModel)
    link_faults: tuple[LinkFault, ...] = ()
    background: BackgroundConfig | None = None
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@verb("simulate")
def main(config: SimulateConfig, run: VerbCall) -> None:
    requests, scaling = read_workload(config.workload, config.seed, closed_loop=True)
    simulation = build_simulation(config, requests)
    print(plan_line(config, run.choices, requests))
    errors = node_errors(simulation.cluster)
    with RecordWriter(run.out, errors) as writer:
        result = run_simulation(simulation, config.progress, drain=None if config.trace else writer.drain)
        writer.add(result.requests, result.transfers)
    if config.trace:
        write_pieces(run.out / "trace.json", chrome_trace(result.requests, result.transfers))
    chosen = {"bitrate": run.choices["bitrate"], "routing": run.choices["routing"]}
    summary = write_summary(run.out, config.slo, result.wall_s, errors, **chosen, scaling=scaling)
    write_manifest(run, inputs(config))
    show(summary)
    print(f"results: {run.out}")


def build_simulation(config: SimulateConfig, requests: Sequence[Request]) -> Simulation:
    """Raises ValueError, one line, where profile, curves, policies or cluster cannot be had."""
    one = other = instance(config.hardware, config.model, config.curves)
    if config.decode_hardware is not None:
        other = instance(config.decode_hardware, config.model, config.curves)
    for profile in (one.profile, other.profile):
        ask_once(build(config.bitrate), profile)  # a policy that cannot work is bad input now, not when nodes meet
    nic = config.network.capacity()
    cluster = ClusterSpec(
        prefill=_nodes("prefill", config.cluster.prefill, one, nic),
        decode=_nodes("decode", config.cluster.decode, other, nic),
        max_batch=config.cluster.max_batch,
        usd_per_gb=config.network.egress_usd_per_gb,
        delay_s=config.network.delay_s,
        engine=replace(config.engine, max_batch=config.cluster.max_batch),
        rebuild_s=config.rebuild_s,
        transport=config.transport,
        link_faults=config.link_faults,
    )
    if config.background is not None:
        cluster = replace(cluster, background=config.background.read(cluster))
    return Simulation(
        cluster,
        requests,
        bitrate=lambda: build(config.bitrate),
        routing=build(config.routing),
        slo=config.slo,
        concurrency=config.workload.concurrency,
        roles=build(config.roles) if config.roles else None,
        admission=build(config.admission) if config.admission else None,
        faults=config.faults,
    )


def _nodes(role: str, count: int, one: Instance, nic: Capacity) -> tuple[NodeSpec, ...]:
    return tuple(NodeSpec(f"{role}-{i}", one.profile, one.kv_tokens, nic, one.usd_per_hour) for i in range(count))


def plan_line(config: SimulateConfig, choices: Mapping[str, str], requests: Sequence[Request]) -> str:
    """What will run, on what, and for how long in simulated time."""
    cluster, clients = config.cluster, config.workload.concurrency
    pace = f"of {clients} clients in a closed loop" if clients else f"over {_clock(requests[-1].arrival_s)}"
    on = _hardware(config.hardware)
    if config.decode_hardware is not None:
        on = f"{on} to prefill, {_hardware(config.decode_hardware)} to decode"
    return (
        f"plan: {len(requests):,} requests {pace} ({choices['workload']}), "
        f"{config.model.name} on {cluster.prefill}P{cluster.decode}D ({on}), "
        f"links of {config.network.gbps:g} Gbit/s ({choices['network']}), "
        + ", ".join(
            f"{group} {choices[group]}" for group in ("bitrate", "routing", "roles", "admission", "engine", "transport") if group in choices
        )
    )


def _hardware(hardware: GpuSpec | MeasuredHardware) -> str:
    return "as profiled" if isinstance(hardware, MeasuredHardware) else f"{hardware.gpus} x {hardware.name} each, not validated on hardware"


def run_simulation(
    simulation: Simulation, progress: bool, title: str = "simulating", drain: Callable[[Simulation], None] | None = None
) -> SimulationResult:
    """drain: takes finished records out of the simulation while it runs; the result then has the rest."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[clock]} simulated"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), disable=not progress) as bar:
        task = bar.add_task(title, total=len(simulation.requests), clock="0:00:00")

        def show_progress(done: int, total: int, now_s: float) -> None:
            bar.update(task, completed=done, total=total, clock=_clock(now_s))
            if drain is not None:
                drain(simulation)

        return simulation.run(show_progress)


def node_errors(cluster: ClusterSpec) -> dict[str, dict[str, float]]:
    """Of each node, by name: how far the tables of its profile are off."""
    known = {id(node.profile): residuals(node.profile) for node in (*cluster.prefill, *cluster.decode)}
    return {node.name: known[id(node.profile)] for node in (*cluster.prefill, *cluster.decode)}


def write_result(folder: Path, result: SimulationResult, slo: SLO, **facts: Any) -> dict[str, Any]:
    """The two Parquet files and summary.json, which is also returned. facts: whatever else the summary should say."""
    with RecordWriter(folder) as writer:
        writer.add(result.requests, result.transfers)
    return write_summary(folder, slo, result.wall_s, **facts)


def write_summary(
    folder: Path, slo: SLO, wall_s: float, errors: Mapping[str, Mapping[str, float]] | None = None, **facts: Any
) -> dict[str, Any]:
    """summary.json of the records that lie in the folder. errors: of the nodes, whose intervals are among the columns."""
    requests = folder / "requests.parquet"
    columns = read_columns(requests)
    summary = {**summarize_columns(columns, slo, wall_s), "validated": False, **facts}
    completed = columns["outcome"] == "completed"
    summary["expected_rise_in_nll"] = expected_quality(columns["distortion_token_weighted"][completed])
    if errors is not None:
        summary["prediction"] = prediction(read_columns(requests, COLUMNS), errors)
    write_json(folder / "summary.json", summary)
    return summary


def inputs(config: SimulateConfig) -> list[Path]:
    """The files that the run reads."""
    measured = [h.profile for h in (config.hardware, config.decode_hardware) if isinstance(h, MeasuredHardware)]
    sizes = [config.background.path.expanduser()] if config.background else []
    return [*workload_files(config.workload), *measured, *network_inputs(config.network), *sizes, config.curves]


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
    if "prediction" in summary:
        known, unknown = summary["prediction"], ", ".join(summary["prediction"]["error_unknown"])
        console.print(
            f"95 % of predictions: TTFT ± {known['ttft_half_width_s']:.3f} s, E2E ± {known['e2e_half_width_s']:.3f} s on average"
            + (f"; nobody has measured the error of {unknown}" if unknown else "")
        )
    if summary["extrapolated_share"]:
        console.print(f"{summary['extrapolated_share']:.1%} of the requests lie outside of what the profile has measured")


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"

"""A simulation from its configuration: it is built, run with a progress bar, and its records are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from abkt.capacity import Capacity
from abkt.policy.build import build, maker
from abkt.policy.roles.base import RolesPolicy
from abkt.policy.roles.colocated import Colocated
from abkt.policy.roles.static import Static
from abkt.profile.expect import ask_once
from abkt.profile.schema import RateCurve
from abkt.ranges import OutOfRange, bound, check_seed
from abkt.records import SLO, summarize_columns
from abkt.spec import ModelSpec
from experiments.lib.config import (
    BLOCK_TOKENS,
    STRICT,
    AdmissionConfig,
    BitrateConfig,
    ClusterConfig,
    Hardware,
    Instance,
    MeasuredHardware,
    RolesConfig,
    RoutingConfig,
    instance,
)
from experiments.lib.curves import expected_kl, expected_quality, known_quality
from experiments.lib.network import Network, network_files
from experiments.lib.record_writer import RecordWriter, read_columns
from experiments.lib.results import write_json
from experiments.lib.workload import SyntheticWorkload, Workload, workload_files
from sim.cluster import Simulation, SimulationResult
from sim.faults import FaultPlan
from sim.interval import COLUMNS, residuals
from sim.interval import summary as prediction
from sim.network.background import Background, read_flow_sizes
from sim.network.link_faults import LinkFault
from sim.specs import ClusterSpec, EngineSpec, NodeSpec
from sim.transfer.transport import TransportModel
from sim.workload.requests import Request

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True, slots=True)
class BackgroundConfig:
    """Background traffic, see sim.network.background. path: a file of flow sizes. links: links that carry it; empty: every node's."""

    path: Path
    load: float
    burst: int
    links: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        bound(self, "load", above=0, most=100)
        bound(self, "burst", least=1, most=100_000)
        check_seed(self)

    def read(self, cluster: ClusterSpec) -> Background:
        names = self.links or tuple(node.name for node in (*cluster.prefill, *cluster.decode))
        return Background(read_flow_sizes(self.path.expanduser()), self.load, tuple((name,) for name in names), self.burst, self.seed)


@dataclass(frozen=True, slots=True)
class SimulateConfig:
    """The configuration of one simulated cluster, as conf/simulate.yaml has it.

    Parameters
    ----------
    model : shape of the LLM.
    hardware, decode_hardware : GPU of every node; GPU of the decode nodes, if it is another one.
    cluster : number of prefill and decode nodes, and the largest decode batch.
    network : capacity over time and propagation delay of every node's link.
    workload : the requests.
    bitrate, routing, roles, admission : policies as abkt.policy.build takes them; every pair of nodes gets a bitrate policy of its own.
    slo : limits of TTFT and TPOT, in seconds; goodput counts the requests within them.
    engine : batching and memory of every node; its max_batch is replaced by the cluster's.
    curves : file of measured rate-distortion curves.
    rebuild_s : seconds that a node needs to change its role once it has drained.
    faults, link_faults, background : node failures, link failures, and background traffic.
    trace : also write trace.json for ui.perfetto.dev.
    plot : also write report.html.
    csv : also write the records as CSV.
    debug : check the laws of sim.invariants while it runs, which is slower and keeps all records.
    """

    model: ModelSpec
    hardware: Hardware
    cluster: ClusterConfig
    network: Network
    workload: Workload
    bitrate: BitrateConfig
    routing: RoutingConfig
    slo: SLO
    seed: int
    curves: Path
    progress: bool
    out: Path
    trace: bool = False
    plot: bool = False
    csv: bool = False
    debug: bool = False
    decode_hardware: Hardware | None = None
    roles: RolesConfig | None = None
    admission: AdmissionConfig | None = None
    engine: EngineSpec = field(default_factory=EngineSpec)
    rebuild_s: float = 0.0
    faults: FaultPlan = FaultPlan()  # noqa: RUF009  # frozen
    transport: TransportModel = field(default_factory=TransportModel)
    link_faults: tuple[LinkFault, ...] = ()
    background: BackgroundConfig | None = None
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        check_seed(self)
        bound(self, "rebuild_s", least=0)
        if self.transport.layer_groups > self.model.layers:
            raise OutOfRange(
                f"transport.layer_groups is {self.transport.layer_groups}; model {self.model.name} has {self.model.layers} layers"
            )


def build_simulation(config: SimulateConfig, requests: Sequence[Request]) -> Simulation:
    """The simulation of `requests` on the configured cluster.

    Raises
    ------
    ValueError
        One line, where the profile, the curves, a policy or the cluster cannot be built.
    """
    one = other = instance(config.hardware, config.model, config.curves)
    if config.decode_hardware is not None:
        other = instance(config.decode_hardware, config.model, config.curves)
    for profile in (one.profile, other.profile):
        ask_once(build(config.bitrate), profile)  # a policy that cannot work is reported before the run, not at its first transfer
    nic = config.network.capacity()
    cluster = ClusterSpec(
        prefill=_nodes("prefill", config.cluster.prefill, one, nic),
        decode=_nodes("decode", config.cluster.decode, other, nic),
        max_batch=config.cluster.max_batch,
        usd_per_gb=config.network.egress_usd_per_gb,
        delay_s=config.network.delay_s,
        engine=replace(config.engine, max_batch=config.cluster.max_batch, hash_tokens=hash_tokens(config, requests)),
        rebuild_s=config.rebuild_s,
        transport=config.transport,
        link_faults=config.link_faults,
    )
    if config.background is not None:
        cluster = replace(cluster, background=config.background.read(cluster))
    return Simulation(
        cluster,
        requests,
        bitrate=maker(config.bitrate),
        routing=build(config.routing),
        slo=config.slo,
        concurrency=config.workload.concurrency,
        roles=build_roles(config),
        admission=build(config.admission) if config.admission else None,
        faults=config.faults,
        debug=config.debug,
    )


def build_roles(config: SimulateConfig) -> RolesPolicy | None:
    """The roles policy. A cluster without prefill instances is colocated.

    Raises ValueError where another policy was asked for.
    """
    policy: RolesPolicy | None = build(config.roles) if config.roles else None
    if config.cluster.prefill or isinstance(policy, Colocated):
        return policy
    if policy is None or type(policy) is Static:
        return Colocated()
    raise ValueError("cluster.prefill is 0; all instances then prefill and decode, so roles must be colocated (or static, the default)")


def hash_tokens(config: SimulateConfig, requests: Sequence[Request]) -> int:
    """Tokens that a hash of the scaled prompts stands for: the trace's times isl_scale, as whole KV blocks; 0 without a prefix cache.

    Raises ValueError where the engine's hash_tokens are not the trace's, or the trace does not tell.
    """
    asked, known = config.engine.hash_tokens, {request.hash_tokens for request in requests if request.hash_ids}
    if not asked or not known or isinstance(config.workload, SyntheticWorkload):
        return asked
    (scaled, *_), scale = known, config.workload.scaling.isl_scale
    if not scaled:
        raise ValueError("a hash of the trace may stand for any number of tokens: give workload.hash_block=TOKENS or engine.hash_tokens=0")
    if round(asked * scale) != scaled:
        raise ValueError(f"engine.hash_tokens is {asked}; a hash of this trace stands for {round(scaled / scale)} tokens")
    return max(1, round(scaled / BLOCK_TOKENS)) * BLOCK_TOKENS


def _nodes(role: str, count: int, one: Instance, nic: Capacity) -> tuple[NodeSpec, ...]:
    return tuple(NodeSpec(f"{role}-{i}", one.profile, one.kv_tokens, nic, one.usd_per_hour) for i in range(count))


def run_simulation(
    simulation: Simulation, progress: bool, title: str = "simulating", drain: Callable[[Simulation], None] | None = None
) -> SimulationResult:
    """Run with a progress bar. drain: takes finished records out of the simulation while it runs; the result then has the rest."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[clock]} simulated"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), disable=not progress) as bar:
        task = bar.add_task(title, total=len(simulation.requests), clock="0:00:00")

        def show_progress(done: int, total: int, now_s: float) -> None:
            bar.update(task, completed=done, total=total, clock=clock(now_s))
            if drain is not None:
                drain(simulation)

        return simulation.run(show_progress)


def node_errors(cluster: ClusterSpec) -> dict[str, dict[str, float]]:
    """Node name -> relative errors of its profile's fits, by stage."""
    known = {id(node.profile): residuals(node.profile) for node in (*cluster.prefill, *cluster.decode)}
    return {node.name: known[id(node.profile)] for node in (*cluster.prefill, *cluster.decode)}


def rate_curves(cluster: ClusterSpec) -> tuple[RateCurve, ...]:
    """The curves that the cluster's transfers are drawn from."""
    profiles = {id(node.profile): node.profile for node in (*cluster.prefill, *cluster.decode)}
    return tuple(curve for profile in profiles.values() for curve in profile.curves)


def write_result(folder: Path, result: SimulationResult, slo: SLO, curves: Sequence[RateCurve], **facts: Any) -> dict[str, Any]:
    """Write requests.parquet, transfers.parquet and summary.json; return the summary. curves: as rate_curves gives them. facts: more keys
    of the summary."""
    with RecordWriter(folder) as writer:
        writer.add(result.requests, result.transfers)
    return write_summary(folder, slo, result.wall_s, curves, **facts)


def write_summary(
    folder: Path,
    slo: SLO,
    wall_s: float,
    curves: Sequence[RateCurve],
    errors: Mapping[str, Mapping[str, float]] | None = None,
    library: Path | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write summary.json from the records in the folder. curves: as rate_curves gives them. errors: as node_errors gives them, if the
    records have prediction intervals. library: a file of curves that may hold the quality of these too."""
    requests = folder / "requests.parquet"
    columns = read_columns(requests)
    summary = {**summarize_columns(columns, slo, wall_s), "validated": False, "slo": asdict(slo), **facts}
    completed = columns["outcome"] == "completed"
    distortion = columns["distortion_token_weighted"][completed]
    rise, refused = expected_quality(distortion, curves, known_quality(library))
    summary |= {"expected_kl": expected_kl(distortion, curves), "expected_rise_in_nll": rise, "expected_rise_refused": refused}
    if errors is not None:
        summary["prediction"] = prediction(read_columns(requests, COLUMNS), errors)
    write_json(folder / "summary.json", summary)
    return summary


def simulation_files(config: SimulateConfig) -> list[Path]:
    """The files that the simulation reads."""
    measured = [h.profile for h in (config.hardware, config.decode_hardware) if isinstance(h, MeasuredHardware)]
    sizes = [config.background.path.expanduser()] if config.background else []
    return [*workload_files(config.workload), *measured, *network_files(config.network), *sizes, config.curves]


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"

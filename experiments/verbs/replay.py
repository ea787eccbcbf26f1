"""`abkt replay`: run requests on real prefill and decode processes of this machine, with real KV over a shaped link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.profile import schema
from abkt.ranges import bound, check_seed
from abkt.records import SLO
from experiments.lib.config import BLOCK_TOKENS, MOST_BATCH, MOST_WORKERS, STRICT, BitrateConfig, ProfilePath, RolesConfig, RoutingConfig
from experiments.lib.network import Network, network_files
from experiments.lib.verb import VerbCall, verb
from experiments.lib.workload import Workload, read_workload, workload_files
from experiments.report import words

if TYPE_CHECKING:
    from pydantic import ConfigDict

    from abkt.serve import LocalClusterSpec
    from experiments.lib.real_network import RealNetwork
    from sim.workload.requests import Request


@dataclass(frozen=True, slots=True)
class ChangeConfig:
    """See abkt.serve.cluster.PlannedRoleChange."""

    at_s: float
    worker: str
    role: str

    def __post_init__(self) -> None:
        bound(self, "at_s", least=0)


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """prefill, decode: numbers of workers; prefill null: as many as the network has senders. paced: a profile whose times the workers sleep
    instead of computing; null: they compute. profile: costs that the policies expect, as `abkt profile` wrote them; null: they start
    without any. calibration: see experiments.models.calibration. layer_groups: as in LocalClusterSpec. changes: role changes in the run.
    pacing: see experiments.lib.real_network.
    """

    model_folder: Path
    network: Network
    pacing: str
    workload: Workload
    bitrate: BitrateConfig
    routing: RoutingConfig
    roles: RolesConfig
    rebuild_s: float
    slo: SLO
    prefill: int | None
    decode: int
    max_batch: int
    pool_tokens: int
    transport_name: str
    changes: tuple[ChangeConfig, ...]
    paced: ProfilePath | None
    profile: ProfilePath | None
    calibration: Path | None
    layer_groups: int
    csv: bool
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "prefill", "decode", least=1, most=MOST_WORKERS)
        bound(self, "max_batch", "layer_groups", least=1, most=MOST_BATCH)
        bound(self, "pool_tokens", least=BLOCK_TOKENS)
        bound(self, "rebuild_s", least=0)
        check_seed(self)


@verb("replay")
def main(config: ReplayConfig, run: VerbCall) -> None:
    from abkt.serve.cluster import LocalCluster, PlannedRoleChange
    from abkt.transfer.transports.registry import check_transport
    from experiments.lib.manifest import manifest
    from experiments.lib.progress import bar
    from experiments.lib.real_network import real_network
    from experiments.lib.results import write_csv, write_json
    from experiments.models.prompts import prompts_for
    from experiments.report.run import RunReport, show_run, write_run
    from experiments.study.twin import Twin, run_real

    requests, scaling = read_workload(config.workload, config.seed, closed_loop=True)
    given = [path for path in (config.paced, config.profile) if path]
    inputs = [*workload_files(config.workload), *network_files(config.network), *given]
    spec = cluster_spec(config)
    twin = Twin(
        prompts_for(requests, config.model_folder, config.seed),
        config.network.capacity(),
        config.slo,
        schema.load(config.profile) if config.profile else None,
        config.network.egress_usd_per_gb,
        config.routing,
        config.roles,
        config.workload.concurrency,
        [PlannedRoleChange(change.at_s, change.worker, change.role) for change in config.changes],
    )
    spec.layout()  # reports a folder that holds no model before anything is written
    check_transport(config.transport_name)
    pacing = "userspace" if config.pacing == "auto" and config.transport_name != "tcp" else config.pacing
    with real_network(config.network, pacing, config.seed, spec.prefill, spec.decode) as network:
        plan = plan_line(requests, spec, config, network)
        print(f"plan: {plan}")
        spec = replace(spec, key_file=network.key_file)
        with LocalCluster(spec, config.out, network.namespaces, network.pacing) as cluster, bar("requests", len(requests)) as progress:
            summary = run_real(twin, cluster, config.bitrate, config.out, progress.update, scaling=scaling, network=network.facts)
    made = manifest(run, [*inputs, config.model_folder / "config.json"])
    write_json(config.out / "manifest.json", made)
    if config.csv:
        for name in ("requests.parquet", "transfers.parquet"):
            write_csv(config.out / name)
    title = f"Replay of {words.plural(len(requests), 'request')} on real processes, bitrate {run.choices['bitrate']}"
    report = RunReport(title, plan, summary, config.slo)
    show_run(report)
    print(f"report: {write_run(config.out, report, made)}")
    print(f"results: {config.out}")


def cluster_spec(config: ReplayConfig) -> LocalClusterSpec:
    from abkt.serve import LocalClusterSpec
    from experiments.models.calibration import calibration_file

    if config.paced:
        schema.load(config.paced)
    spec = LocalClusterSpec(
        config.model_folder,
        prefill=config.network.senders if config.prefill is None else config.prefill,
        decode=config.decode,
        max_batch=config.max_batch,
        pool_tokens=config.pool_tokens,
        paced=config.paced,
        layer_groups=config.layer_groups,
        transport=config.transport_name,
    )
    return replace(spec, calibration=calibration_file(config.calibration, config.model_folder, spec.layout()))


def plan_line(requests: Sequence[Request], spec: LocalClusterSpec, config: ReplayConfig, network: RealNetwork) -> str:
    """One line: the requests, the workers, and the link between them."""
    sleeping = ", which sleep the times of a profile" if spec.paced else ""
    through = f"{spec.prefill} prefill and {spec.decode} decode process{'es' if spec.decode > 1 else ''} of this machine{sleeping}"
    over = "network namespaces with shaped links" if network.namespaces else f"loopback, pacing: {network.pacing}"
    why = f" ({network.facts['why_not_namespaces']})" if "why_not_namespaces" in network.facts else ""
    clients = config.workload.concurrency
    when = f"of {clients} clients in a closed loop" if clients else f"over {words.seconds(requests[-1].arrival_s)}"
    link = words.link(config.network.capacity(), config.network.delay_s, config.network.loss)
    return f"{words.plural(len(requests), 'request')} {when} through {through}, over {link}; {over}{why}"

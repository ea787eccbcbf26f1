"""`abkt replay`: run requests on real prefill and decode processes of this machine, with real KV over a shaped link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from abkt.profile import schema
from abkt.records import SLO
from experiments.lib.config import STRICT
from experiments.lib.network import Network, network_files
from experiments.lib.verb import VerbCall, verb
from experiments.lib.workload import Workload, read_workload, workload_files

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


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """prefill, decode: numbers of workers; prefill null: as many as the network has senders. paced: a profile whose times the workers sleep
    instead of computing; null: they compute. profile: costs that the policies expect, as `abkt profile` wrote them; null: they start
    without any. calibration, layer_groups: as in LocalClusterSpec. changes: role changes during the run. pacing: see
    experiments.lib.real_network.
    """

    model_folder: Path
    network: Network
    pacing: str
    workload: Workload
    bitrate: dict[str, Any]
    routing: dict[str, Any]
    roles: dict[str, Any]
    rebuild_s: float
    slo: SLO
    prefill: int | None
    decode: int
    max_batch: int
    pool_tokens: int
    transport: str
    changes: tuple[ChangeConfig, ...]
    paced: Path | None
    profile: Path | None
    calibration: Path | None
    layer_groups: int
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@verb("replay")
def main(config: ReplayConfig, run: VerbCall) -> None:
    from abkt.serve.cluster import LocalCluster, PlannedRoleChange
    from abkt.transfer.transports.registry import check_transport
    from experiments.lib.manifest import write_manifest
    from experiments.lib.progress import bar
    from experiments.lib.prompts import prompts_for
    from experiments.lib.real_network import real_network
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
    check_transport(config.transport)
    pacing = "userspace" if config.pacing == "auto" and config.transport != "tcp" else config.pacing
    with real_network(config.network, pacing, config.seed, spec.prefill, spec.decode) as network:
        print(plan_line(requests, spec, config, network))
        config.out.mkdir(parents=True, exist_ok=True)
        spec = replace(spec, key_file=network.key_file)
        with LocalCluster(spec, config.out, network.namespaces, network.pacing) as cluster, bar("requests", len(requests)) as progress:
            summary = run_real(twin, cluster, config.bitrate, config.out, progress.update, scaling=scaling, network=network.facts)
    write_manifest(run, [*inputs, config.model_folder / "config.json"])
    print(
        f"{summary['requests']['completed']} completed; TTFT mean {summary['ttft_s']['mean']:.3f} s, p99 {summary['ttft_s']['p99']:.3f} s; "
        f"{summary['wire_bytes'] / summary['raw_bytes']:.2f} of the raw bytes; distortion {summary['distortion']['mean']:.4f}: {config.out}"
    )


def cluster_spec(config: ReplayConfig) -> LocalClusterSpec:
    from abkt.codec.calibration import load
    from abkt.serve import LocalClusterSpec

    if config.paced:
        schema.load(config.paced)
    spec = LocalClusterSpec(
        config.model_folder,
        prefill=config.network.senders if config.prefill is None else config.prefill,
        decode=config.decode,
        max_batch=config.max_batch,
        pool_tokens=config.pool_tokens,
        paced=config.paced,
        calibration=config.calibration,
        layer_groups=config.layer_groups,
        transport=config.transport,
    )
    if config.calibration:
        load(config.calibration).check(spec.layout())
    return spec


def plan_line(requests: Sequence[Request], spec: LocalClusterSpec, config: ReplayConfig, network: RealNetwork) -> str:
    """One line: the requests, the workers, and the link between them."""
    sleeping = ", which sleep the times of a profile" if spec.paced else ""
    through = f"{spec.prefill} prefill and {spec.decode} decode process{'es' if spec.decode > 1 else ''} of this machine{sleeping}"
    over = "network namespaces with shaped links" if network.namespaces else f"loopback, pacing: {network.pacing}"
    why = f" ({network.facts['why_not_namespaces']})" if "why_not_namespaces" in network.facts else ""
    clients = config.workload.concurrency
    when = f"of {clients} clients in a closed loop" if clients else f"over {requests[-1].arrival_s:.0f} s"
    return f"plan: {len(requests)} requests {when} through {through}; {over}{why}"

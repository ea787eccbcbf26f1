"""Run requests on real prefill and decode processes of this machine, with real KV over a real, shaped link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from abkt.profile import schema
from abkt.records import SLO
from experiments.config import STRICT
from experiments.network import Network
from experiments.network import inputs as network_inputs
from experiments.verb import Run, verb
from experiments.workload import Workload, read_workload, workload_files

if TYPE_CHECKING:
    from pydantic import ConfigDict

    from experiments.real_network import RealNetwork
    from sim.workload import Request


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """profile: what the policies expect of this machine, as `abkt profile` wrote it; null: they start knowing nothing.

    pacing: see experiments.real_network.
    """

    model_folder: Path
    network: Network
    pacing: str
    workload: Workload
    bitrate: dict[str, Any]
    slo: SLO
    profile: Path | None
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@verb("replay")
def main(config: ReplayConfig, run: Run) -> None:
    from abkt.serve.cluster import Cluster, ClusterSpec
    from experiments.manifest import write_manifest
    from experiments.prompts import prompts_for
    from experiments.real_network import real_network
    from experiments.show import bar
    from experiments.twin import Twin, run_real

    requests, scaling = read_workload(config.workload, config.seed)
    inputs = workload_files(config.workload)
    inputs += network_inputs(config.network)
    profile = schema.load(config.profile) if config.profile else None
    twin = Twin(prompts_for(requests, config.seed), config.network.capacity(), config.slo, profile, config.network.egress_usd_per_gb)
    spec = ClusterSpec(config.model_folder, prefill=config.network.senders)
    spec.layout()  # a folder that is no model is said before anything is made
    with real_network(config.network, config.pacing, config.seed) as network:
        print(plan_line(requests, spec.prefill, network))
        config.out.mkdir(parents=True, exist_ok=True)
        spec = replace(spec, key_file=network.key_file)
        with Cluster(spec, config.out, network.namespaces, network.pacing) as cluster, bar("requests", len(requests)) as progress:
            summary = run_real(twin, cluster, config.bitrate, config.out, progress.update, scaling=scaling, network=network.facts)
    write_manifest(run, [*inputs, config.model_folder / "config.json"])
    print(
        f"{summary['requests']['completed']} completed; TTFT mean {summary['ttft_s']['mean']:.3f} s, p99 {summary['ttft_s']['p99']:.3f} s; "
        f"{summary['wire_bytes'] / summary['raw_bytes']:.2f} of the raw bytes; distortion {summary['distortion']['mean']:.4f}: {config.out}"
    )


def plan_line(requests: Sequence[Request], senders: int, network: RealNetwork) -> str:
    """What will run, and over what."""
    through = f"{senders} prefill and 1 decode process of this machine"
    over = "network namespaces with shaped links" if network.namespaces else f"loopback, pacing: {network.pacing}"
    why = f" ({network.facts['why_not_namespaces']})" if "why_not_namespaces" in network.facts else ""
    return f"plan: {len(requests)} requests over {requests[-1].arrival_s:.0f} s through {through}; {over}{why}"

"""Run requests on a real prefill and a real decode process of this machine, with real KV over a paced link."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from abkt.profile import schema
from abkt.records import SLO
from experiments.config import STRICT, NetworkConfig
from experiments.simulate import TraceWorkload, Workload, read_workload
from experiments.verb import Run, verb

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """profile: what the policies expect of this machine, as `abkt profile` wrote it; null: they start knowing nothing."""

    model_folder: Path
    network: NetworkConfig
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
    from experiments.show import bar
    from experiments.twin import Twin, run_real

    requests, scaling = read_workload(config.workload, config.seed)
    inputs = [config.workload.path] if isinstance(config.workload, TraceWorkload) else []
    profile = schema.load(config.profile) if config.profile else None
    twin = Twin(prompts_for(requests, config.seed), config.network.capacity(), config.slo, profile)
    print(f"plan: {len(requests)} requests over {requests[-1].arrival_s:.0f} s through one prefill and one decode process of this machine")
    spec = ClusterSpec(config.model_folder)
    spec.layout()  # a folder that is no model is said before anything is made
    config.out.mkdir(parents=True, exist_ok=True)
    with Cluster(spec, config.out) as cluster, bar("requests", len(requests)) as progress:
        summary = run_real(twin, cluster, config.bitrate, config.out, progress.update, scaling=scaling)
    write_manifest(run, [*inputs, config.model_folder / "config.json"])
    print(
        f"{summary['requests']['completed']} completed; TTFT mean {summary['ttft_s']['mean']:.3f} s, p99 {summary['ttft_s']['p99']:.3f} s; "
        f"{summary['wire_bytes'] / summary['raw_bytes']:.2f} of the raw bytes; distortion {summary['distortion']['mean']:.4f}: {config.out}"
    )

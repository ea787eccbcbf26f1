"""The probe on real processes: every policy over every network of the reference implementation's fluctuations, with one profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from abkt.profile import schema
from abkt.records import SLO
from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.lib.network import Network
from experiments.lib.progress import bar
from experiments.lib.workload import Workload, read_workload

if TYPE_CHECKING:
    from abkt.profile.schema import Profile
    from abkt.serve.cluster import LocalCluster

POLICIES = ("raw", "int8", "int4", "embedded")
NETWORKS = ("constant", "mid_drop", "oscillating")
OVERRIDES = ("network.gbps=0.08", "workload.scaling.requests=24", "workload.scaling.speedup=0.2")


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """The part of `abkt replay`'s configuration that a run needs."""

    network: Network
    workload: Workload
    bitrate: dict[str, Any]
    slo: SLO


def measure(folder: Path, model_folder: Path, given: Path | None, seed: int) -> pd.DataFrame:
    """Run every policy over every network; a row each. given: a profile.json of this machine; None: it is measured."""
    from abkt.measure.cluster import steps
    from abkt.serve import LocalCluster, LocalClusterSpec
    from experiments.lib.profiling import profile_cluster

    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    with LocalCluster(LocalClusterSpec(model_folder), folder) as cluster:
        if given:
            profile = schema.load(given)
        else:
            with bar("profile", steps(cluster.spec)) as progress:
                profile = profile_cluster(cluster, seed, progress.step)
        for network in NETWORKS:
            for policy in POLICIES:
                plain = compose("replay", [f"network={network}", f"bitrate={policy}", *OVERRIDES]).config
                found.append({"network": network, "policy": policy, **_replay(cluster, plain, profile, folder / network / policy, seed)})
    return pd.DataFrame(found)


def _replay(cluster: LocalCluster, plain: Mapping[str, Any], profile: Profile, folder: Path, seed: int) -> dict[str, float]:
    from experiments.models.prompts import prompts_for
    from experiments.study.twin import Twin, run_real

    config = read(ProbeRun, {key: plain[key] for key in ProbeRun.__slots__})
    requests, _ = read_workload(config.workload, seed)
    twin = Twin(prompts_for(requests, cluster.spec.model_folder, seed), config.network.capacity(), config.slo, profile)
    with bar(f"{folder.parent.name}, {folder.name}", len(requests)) as progress:
        summary = run_real(twin, cluster, config.bitrate, folder, progress.update)
    return {
        "good": float(summary["good_share"]),
        "ttft_s": float(summary["ttft_s"]["mean"]),
        "p99_s": float(summary["ttft_s"]["p99"]),
        "of_raw": summary["wire_bytes"] / summary["raw_bytes"],
        "distortion": float(summary["distortion"]["mean"]),
        "right": float(summary["answers"].get("rest", float("nan"))),
    }

"""`abkt study`: which KV-transfer policy should this cluster use, and can that answer be trusted?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.profile import schema
from abkt.ranges import bound, check_seed
from abkt.records import SLO
from experiments.lib.config import STRICT, PolicyConfig, ProfilePath
from experiments.lib.curves import save_curves
from experiments.lib.manifest import write_manifest
from experiments.lib.network import Network
from experiments.lib.progress import bar
from experiments.lib.results import read_json, write_json
from experiments.lib.verb import VerbCall, verb
from experiments.lib.workload import TraceWorkload, Workload, read_workload, workload_files
from experiments.study import folder as study_folder
from experiments.study.comparison import compare_worlds
from experiments.study.scaleout import ScaleOutConfig, run_scaleout

if TYPE_CHECKING:
    from pydantic import ConfigDict

NOTES = (
    "Real: one prefill and one decode process on this machine, one pinned core and one thread each, computing with the probe model.",
    "The link is emulated: frames are held back in user space until a link of the given capacity would have passed them "
    "(no loss, no propagation delay), then cross loopback TCP.",
    "Prompts are key-value lines as the probe was trained on, at the trace's scaled lengths; the right answer to each is known.",
    "Arrivals with the same timestamp in the trace are spread at random, by the seed.",
    "Scale-out: costs from published kernels or data sheets, and rate curves of the probe's KV; it was not validated on hardware here.",
)

RECALL_GATE = 0.9


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """bitrates: policies of the twin runs, by name. profile: a profile.json of this machine; null: measure it now. max_distortion: see
    experiments.study.ranking."""

    model_folder: Path
    network: Network
    workload: Workload
    bitrates: dict[str, PolicyConfig]
    slo: SLO
    scaleout: ScaleOutConfig
    max_distortion: float
    profile: ProfilePath | None
    calibration: Path | None
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "max_distortion", above=0, infinite=True)
        check_seed(self)
        if not self.bitrates:
            raise ValueError("a study needs a policy in bitrates")


@verb("study")
def main(config: StudyConfig, run: VerbCall) -> None:
    from abkt.serve import LocalCluster, LocalClusterSpec
    from experiments.lib.calibration import calibration_file
    from experiments.lib.profiling import print_fits, profile_cluster
    from experiments.lib.prompts import prompts_for
    from experiments.study.report import write_report
    from experiments.study.twin import Twin, run_real, run_simulated

    requests, scaling = read_workload(config.workload, config.seed)
    spec = LocalClusterSpec(config.model_folder)
    layout = spec.layout()  # reports a folder that holds no model before anything is written
    spec = replace(spec, calibration=calibration_file(config.calibration, config.model_folder, layout))
    print(plan_line(config, len(requests), requests[-1].arrival_s))
    config.out.mkdir(parents=True, exist_ok=True)
    with LocalCluster(spec, config.out) as cluster:
        if config.profile:
            profile = schema.load(config.profile)
        else:
            with bar("profile") as progress:
                profile = profile_cluster(cluster, config.seed, progress.step)
        profile.save(config.out / "profile.json")
        save_curves(profile.curves, config.out / "curves.json")
        print_fits(profile)
        twin = Twin(prompts_for(requests, config.model_folder, config.seed), config.network.capacity(), config.slo, profile)
        for name, bitrate in config.bitrates.items():
            with bar(f"real: {name}", len(requests)) as progress:
                run_real(twin, cluster, bitrate, study_folder.twin(config.out, "real", name), progress.update)
    for name, bitrate in config.bitrates.items():
        run_simulated(twin, spec, bitrate, study_folder.twin(config.out, "simulated", name))
    write_json(config.out / "compare.json", compare_worlds(config.out, list(config.bitrates), config.max_distortion))
    run_scaleout(run.config["scaleout"], config.seed, config.out)
    study_folder.write_study(config.out, facts(config, run, scaling))
    inputs = [path for w in (config.workload, config.scaleout.workload) for path in workload_files(w)]
    write_manifest(run, [*inputs, config.model_folder / "config.json"])
    write_report(config.out)
    print(f"report: {config.out / 'report.html'}")


def plan_line(config: StudyConfig, requests: int, span_s: float) -> str:
    """One line: the runs, the clusters, and the expected time."""
    scaleout = config.scaleout
    minutes = (60 + len(config.bitrates) * (span_s + 5) + 60) / 60
    return (
        f"plan: profile this machine; {requests} requests over {span_s:.0f} s by {', '.join(config.bitrates)}, "
        "on real processes and in the simulator; "
        f"{len(scaleout.routings)} routings x {len(scaleout.bitrates)} bitrates on {scaleout.cluster.prefill}P{scaleout.cluster.decode}D "
        f"in the simulator; about {minutes:.0f} minutes"
    )


def probe_note(folder: Path) -> str:
    """How well the model uses its context, which decides what its answers can tell about the KV."""
    examined = folder / "probe.json"
    if not examined.exists():
        return f"The model {folder.name} was not examined; its answers may say nothing about the KV it received."
    recall = read_json(examined)["recall_by_length"]["1024"]
    verdict = "passes" if recall >= RECALL_GATE else "does not pass"
    return f"The probe recalls {recall:.1%} of values in contexts of 1,024 tokens, which {verdict} the gate of {RECALL_GATE:.0%}."


def facts(config: StudyConfig, run: VerbCall, scaling: Mapping[str, float]) -> study_folder.StudyFacts:
    scaleout, cluster = config.scaleout, config.scaleout.cluster
    return study_folder.StudyFacts(
        policies=list(config.bitrates),
        routings=list(scaleout.routings),
        bitrates=list(scaleout.bitrates),
        max_distortion=config.max_distortion,
        slo=config.slo,
        scaleout_slo=scaleout.slo,
        link=config.network.capacity(),
        scaling=scaling,
        scaleout={
            "model": scaleout.model.name,
            "hardware": getattr(scaleout.hardware, "name", "measured profile"),
            "cluster": f"{cluster.prefill}P{cluster.decode}D",
            "network": f"{scaleout.network.gbps:g} Gbit/s links",
            "workload": scaleout.workload.path.name if isinstance(scaleout.workload, TraceWorkload) else "synthetic",
        },
        notes=(*NOTES, probe_note(config.model_folder)),
    )

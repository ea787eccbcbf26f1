"""`abkt study`: which KV-transfer policy should this cluster use, and can that answer be trusted?"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from abkt.profile import schema
from abkt.ranges import bound, check_seed
from abkt.records import SLO
from experiments.lib.compose import compose
from experiments.lib.config import STRICT, BitrateConfig, ProfilePath, read
from experiments.lib.curves import save_curves
from experiments.lib.manifest import write_manifest
from experiments.lib.network import Network
from experiments.lib.progress import bar
from experiments.lib.results import read_json, write_json
from experiments.lib.verb import VerbCall, model_overrides, verb
from experiments.lib.workload import SyntheticWorkload, TraceWorkload, Workload, workload_files
from experiments.study import folder as study_folder
from experiments.study.answer import answer
from experiments.study.load import MOST, Aim, Given
from experiments.study.order import interleaved
from experiments.study.plan import StudyPlan, explicit, plan_study, scaling_overrides, unscaled
from experiments.study.ranking import rank
from experiments.study.scaleout import ScaleOutConfig, run_scaleout

if TYPE_CHECKING:
    from pydantic import ConfigDict

    from abkt.serve import LocalCluster, LocalClusterSpec
    from experiments.study.twin import Twin

NOTES = (
    "Real: one prefill and one decode process on this machine, one pinned core and one thread each, computing with the probe model.",
    "The link is emulated: frames are held back in user space until a link of the given capacity would have passed them "
    "(no loss, no propagation delay), then cross loopback TCP.",
    "Prompts are key-value lines as the probe was trained on, at the trace's scaled lengths; the right answer to each is known.",
    "Arrivals with the same timestamp in the trace are spread at random, by the seed.",
    "Scale-out: costs from published kernels or data sheets, and rate curves of the probe's KV; it was not validated on hardware here.",
)

RECALL_GATE = 0.9
PROFILE_SHARE = 0.3  # of the minutes, at most, for the profile
REPORT_S = 20.0  # time for the answer and the report
RUN_S = 1.0  # of each real run, beyond its simulated time


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """The configuration of a study.

    Parameters
    ----------
    bitrates : policies of the twin, by name. optional: those that are left out, last first, where the time does not suffice for all.
    load : prefill utilisation to aim at. minutes: time to aim at for the whole study, after set-up.
    max_distortion : see experiments.study.ranking.
    profile : a profile.json of this machine; null: measure it now.
    dtype : what the workers compute in; auto: what is fast on this machine.
    """

    model_folder: Path
    network: Network
    workload: Workload
    bitrates: dict[str, BitrateConfig]
    optional: tuple[str, ...]
    slo: SLO
    scaleout: ScaleOutConfig
    load: float
    minutes: float
    max_distortion: float
    profile: ProfilePath | None
    calibration: Path | None
    dtype: str
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "load", least=0.05, most=MOST)  # above it a queue grows without end
        bound(self, "minutes", least=1, most=1440)
        bound(self, "max_distortion", above=0, infinite=True)
        check_seed(self)
        if not self.bitrates:
            raise ValueError("a study needs a policy in bitrates")
        for name, plain in (("delay_s", 0.0), ("loss", 0.0), ("senders", 1)):
            if getattr(self.network, name) != plain:
                raise ValueError(f"a study's link is emulated in user space, without network.{name}; `abkt replay` has it")

    def ordered(self) -> list[str]:
        """The policies, those that may be left out at the end."""
        kept = [name for name in self.bitrates if name not in self.optional]
        return [*kept, *(name for name in self.optional if name in self.bitrates)]


@verb("study")
def main(config: StudyConfig, run: VerbCall) -> None:
    from abkt.measure.cluster import steps
    from abkt.serve import LocalCluster, LocalClusterSpec
    from experiments.lib.profiling import print_fits, profile_cluster
    from experiments.models.calibration import calibration_file
    from experiments.report.terminal import show_table, show_verdict
    from experiments.study.report import write_report
    from experiments.study.tables import policy_table

    started_s = time.monotonic()
    given = explicit(run.arguments)
    trace = unscaled(config.workload, config.seed)
    spec = LocalClusterSpec(config.model_folder, dtype=config.dtype)
    layout = spec.layout()  # reports a folder that holds no model before anything is written
    spec = replace(spec, calibration=calibration_file(config.calibration, config.model_folder, layout))
    compute = spec.compute_dtype().words(layout.model.dtype)
    profile = schema.load(config.profile) if config.profile else None
    print(plan_line(config, compute))
    config.out.mkdir(parents=True, exist_ok=True)
    with LocalCluster(spec, config.out) as cluster:
        if profile is None:
            with bar("profile", steps(spec)) as progress:
                profile = profile_cluster(cluster, config.seed, progress.step, PROFILE_SHARE * config.minutes)
        profile.save(config.out / "profile.json")
        save_curves(profile.curves, config.out / "curves.json")
        print_fits(profile)
        run_scaleout(run.config["scaleout"], config.seed, config.out)  # before the twin, which takes what is left of the time
        left_s = config.minutes * 60 - (time.monotonic() - started_s) - REPORT_S
        shared = len(os.sched_getaffinity(0)) < spec.prefill + spec.decode
        optional = sum(name in config.optional for name in config.bitrates)
        aim = Aim(config.load, max(left_s, 1.0), len(config.bitrates), optional, shared)
        plan = plan_study(trace, given, aim, config.slo, config.network, profile, spec, config.seed)
        run = chosen(run, plan.overrides)
        config = read(StudyConfig, run.config)
        policies = config.ordered()[: plan.load.policies]
        twin = make_twin(plan, config, profile)
        simulated_s = predict(config, twin, spec, policies)
        planned_s = time.monotonic() - started_s + plan.load.repeats * (simulated_s + RUN_S * len(policies)) + REPORT_S
        print("\n".join(plan.chosen))
        print(f"plan: {plan.load.repeats} repeats of {', '.join(policies)}, in random order; about {planned_s / 60:.1f} minutes in all")
        run_twin(config, twin, cluster, policies, plan.load.repeats)
    found = answer(config.out, policies, plan.load.repeats, config.slo, config.max_distortion)
    write_json(config.out / "compare.json", found.compare)
    minutes = {"asked": config.minutes, "planned": planned_s / 60, "actual": (time.monotonic() - started_s) / 60}
    study_folder.write_study(config.out, facts(config, plan, trace.facts, policies, compute, minutes, given.load), found.summary())
    inputs = [path for w in (config.workload, config.scaleout.workload) for path in workload_files(w)]
    write_manifest(run, [*inputs, config.model_folder / "config.json"])
    write_report(config.out)
    show_table(policy_table(read_json(config.out / "summary.json"), found.compare))
    print(f"report: {config.out / 'report.html'}, after {(time.monotonic() - started_s) / 60:.1f} minutes")
    print(found.trust.sentence())
    show_verdict(found.decision.verdict)


def plan_line(config: StudyConfig, compute: str) -> str:
    """One line: the runs, the clusters, and the expected time."""
    scaleout = config.scaleout
    return (
        f"plan: {compute}; {'profile this machine' if config.profile is None else 'take the profile'}; "
        f"{len(scaleout.routings)} routings x {len(scaleout.bitrates)} bitrates on {scaleout.cluster.prefill}P{scaleout.cluster.decode}D "
        f"in the simulator; choose a load of {config.load:.0%} for this machine; {', '.join(config.bitrates)} on real processes and in the "
        f"simulator; about {config.minutes:.0f} minutes"
    )


def chosen(run: VerbCall, overrides: Sequence[str]) -> VerbCall:
    """The call with what the machine has chosen, which policies refer to."""
    config = compose(run.verb, [*model_overrides(run.arguments)[0], *overrides]).config
    return replace(run, config={**config, "model_folder": run.config["model_folder"], "out": run.out})


def make_twin(plan: StudyPlan, config: StudyConfig, profile: schema.Profile) -> Twin:
    from experiments.study.twin import Twin

    return Twin(plan.prompts, config.network.capacity(), config.slo, profile)


def predict(config: StudyConfig, twin: Twin, spec: LocalClusterSpec, policies: list[str]) -> float:
    """Run every policy in the simulator and write predictions.json; returns the simulated seconds of one repeat."""
    from experiments.study.twin import run_simulated

    summaries, seconds = {}, 0.0
    for name in policies:
        summaries[name] = run_simulated(twin, spec, config.bitrates[name], study_folder.simulated(config.out, name))
        seconds += summaries[name]["requests"]["completed"] / summaries[name]["throughput_per_s"]
    kept = ("ttft_s", "e2e_s", "good_share", "goodput_per_s", "distortion", "wire_bytes")
    predictions = {
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "pick": rank(summaries, config.max_distortion).pick,
        "policies": {name: {key: summary[key] for key in kept} for name, summary in summaries.items()},
    }
    write_json(config.out / "predictions.json", predictions)
    return seconds


def run_twin(config: StudyConfig, twin: Twin, cluster: LocalCluster, policies: list[str], repeats: int) -> None:
    from experiments.study.twin import run_real

    order, requests = interleaved(policies, repeats, config.seed), len(twin.prompts)
    with bar("real", len(order) * requests) as progress:
        for number, (repeat, name) in enumerate(order):
            progress.progress.update(progress.task, description=f"real: repeat {repeat} of {repeats}, {name}")
            folder, before = study_folder.real(config.out, name, repeat), number * requests

            def show(done: int, _: int, before: int = before) -> None:
                progress.update(before + done, len(order) * requests)

            run_real(twin, cluster, config.bitrates[name], folder, show)


def probe_note(folder: Path) -> str:
    """How well the model uses its context, which decides what its answers can tell about the KV."""
    examined = folder / "probe.json"
    if not examined.exists():
        return f"The model {folder.name} was not examined; its answers may say nothing about the KV it received."
    recall = read_json(examined)["recall_by_length"]["1024"]
    verdict = "passes" if recall >= RECALL_GATE else "does not pass"
    return f"The probe recalls {recall:.1%} of values in contexts of 1,024 tokens, which {verdict} the gate of {RECALL_GATE:.0%}."


def facts(
    config: StudyConfig,
    plan: StudyPlan,
    trace: Mapping[str, Any],
    policies: list[str],
    compute: str,
    minutes: Mapping[str, float],
    given: Given,
) -> study_folder.StudyFacts:
    scaleout, cluster = config.scaleout, config.scaleout.cluster
    left_out = [name for name in config.bitrates if name not in policies]
    again = [] if isinstance(config.workload, SyntheticWorkload) else [*scaling_overrides(given, plan.load.scaling), *plan.overrides]
    return study_folder.StudyFacts(
        policies=policies,
        repeats=plan.load.repeats,
        routings=list(scaleout.routings),
        bitrates=list(scaleout.bitrates),
        max_distortion=config.max_distortion,
        load=config.load,
        slo=config.slo,
        scaleout_slo=scaleout.slo,
        link=config.network.capacity(),
        scaling={**trace, **plan.load.facts},
        chosen=[*plan.chosen, *([f"Left out for want of time: {', '.join(left_out)}."] if left_out else [])],
        again=" ".join(again),
        compute=compute,
        minutes=minutes,
        scaleout={
            "model": scaleout.model.name,
            "hardware": getattr(scaleout.hardware, "name", "measured profile"),
            "cluster": f"{cluster.prefill}P{cluster.decode}D",
            "network": f"{scaleout.network.gbps:g} Gbit/s links",
            "workload": scaleout.workload.path.name if isinstance(scaleout.workload, TraceWorkload) else "synthetic",
        },
        notes=(*NOTES, probe_note(config.model_folder)),
    )

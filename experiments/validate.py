"""`abkt validate`: the model predicts runs it was not calibrated on, the machine runs them, and FIDELITY.md says how far they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from abkt.profile import schema
from abkt.records import SLO
from experiments.config import STRICT
from experiments.manifest import write_manifest
from experiments.network import Network
from experiments.results import write_json, write_text
from experiments.show import bar
from experiments.stamp import write_stamped
from experiments.validation.document import fidelity, percent, verdict
from experiments.validation.folder import Folder, load_case
from experiments.validation.scores import by_stage, coverage, drift, errors, rank_correlation, regrets, targets
from experiments.verb import Run, verb
from experiments.workload import TraceWorkload, read_workload

if TYPE_CHECKING:
    from pydantic import ConfigDict

    from abkt.profile.schema import Profile
    from abkt.serve.cluster import ClusterSpec
    from experiments.twin import Twin

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Condition:
    """Under what the same policies run: another link, another load, other lengths and other requests of the trace."""

    network: Network
    speedup: float
    isl_scale: float
    skip: int


@dataclass(frozen=True, slots=True)
class ValidateConfig:
    """network: what policies believe at first. targets: e2e and ttft, mean relative errors, and regret, goodput lost. drift: measure the
    machine again at the end."""

    model_folder: Path
    network: Network
    workload: TraceWorkload
    bitrates: dict[str, dict[str, Any]]
    conditions: dict[str, Condition]
    slo: SLO
    compute: str
    prefill: int
    decode: int
    requests: int
    repeats: int
    max_distortion: float
    profile: Path | None
    targets: dict[str, float]
    drift: bool
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        if self.compute not in ("real", "paced"):
            raise ValueError(f"compute is {self.compute}; it must be real or paced")
        if min(self.prefill, self.decode, self.requests, self.repeats) < 1:
            raise ValueError("prefill, decode, requests and repeats must be at least 1")
        if self.compute == "real" and (self.prefill, self.decode) != (1, 1):
            raise ValueError(f"{self.prefill}P{self.decode}D with compute=real would share cores; add compute=paced")
        if missing := {"e2e", "ttft", "regret"} - set(self.targets):
            raise ValueError(f"targets lacks {min(missing)}")


@verb("validate")
def main(config: ValidateConfig, run: Run) -> None:
    from abkt.serve.cluster import Cluster, ClusterSpec
    from experiments.profile import measure
    from experiments.twin import run_model, run_real

    real = ClusterSpec(config.model_folder)
    real.layout()  # a folder that is no model is said before anything is made
    workloads = {name: read_workload(_workload(config, condition), config.seed)[0] for name, condition in config.conditions.items()}
    print(plan_line(config, max(requests[-1].arrival_s for requests in workloads.values())))
    config.out.mkdir(parents=True, exist_ok=True)
    if config.profile:
        profile = schema.load(config.profile)
    else:
        with Cluster(real, config.out) as cluster, bar("profile") as progress:
            profile = measure(cluster, config.seed, progress.step)
    profile.save(config.out / "profile.json")
    spec = replace(real, prefill=config.prefill, decode=config.decode)
    if config.compute == "paced":
        spec = replace(spec, paced=config.out / "profile.json")
    folder = Folder(config.out, config.repeats)
    twins = {name: _twin(config, condition, workloads[name], profile) for name, condition in config.conditions.items()}
    for name, twin in twins.items():  # before anything has run
        for policy, bitrate in config.bitrates.items():
            run_model(twin, spec, bitrate, folder.model(name, policy))
    with Cluster(spec, config.out) as cluster:
        for repeat in range(config.repeats):  # outermost: what drifts on the machine is then noise, and no bias of a policy
            for name, twin in twins.items():
                for policy, bitrate in config.bitrates.items():
                    with bar(f"{repeat + 1} of {config.repeats}, {name}, {policy}", len(twin.prompts)) as progress:
                        run_real(twin, cluster, bitrate, folder.real(name, policy, repeat), progress.update)
    again: dict[str, float] = {}
    if config.drift:
        with Cluster(real, config.out) as cluster, bar("profile again") as progress:
            again = drift(profile, measure(cluster, config.seed, progress.step))
    report(config, run, folder, profile, spec, again)


def report(config: ValidateConfig, run: Run, folder: Folder, profile: Profile, spec: ClusterSpec, again: Mapping[str, float]) -> None:
    """validation.parquet, validation.json, FIDELITY.md and the manifest, from the records of the runs."""
    cases = [load_case(folder, condition, policy) for condition in config.conditions for policy in config.bitrates]
    found = errors(cases)
    stages, regret, correlation = by_stage(found), regrets(cases, config.max_distortion, config.slo), rank_correlation(cases)
    covered, met = coverage(cases, profile), targets(stages, regret, config.targets)
    write_stamped(run.out / "validation.parquet", pa.Table.from_pandas(found, preserve_index=False), run)
    write_json(
        run.out / "validation.json",
        {
            "schema_version": SCHEMA_VERSION,
            "targets": met,
            "stages": stages.to_dict("records"),
            "regret": [asdict(r) for r in regret],
            "rank_correlation": correlation,
            "coverage": covered,
            "drift": again,
        },
    )
    write_text(run.out / "FIDELITY.md", fidelity({**facts(config, spec), "drift": again}, stages, met, regret, correlation, covered))
    write_manifest(run, [config.workload.path.expanduser(), config.model_folder / "config.json"])
    for target in met:
        words = f"{target['name']} {percent(target['value'])}, target {percent(target['target'])}, noise {percent(target['noise'])}"
        print(f"{words}; met: {verdict(target)}")
    print(f"fidelity: {run.out / 'FIDELITY.md'}")


def plan_line(config: ValidateConfig, span_s: float) -> str:
    """What will run, on what, and for how long."""
    runs, profiles = len(config.conditions) * len(config.bitrates) * config.repeats, (config.profile is None) + config.drift
    first = "profile this machine; " if config.profile is None else ""
    on = f"{config.prefill}P{config.decode}D compute={config.compute}"
    return (
        f"plan: {first}predict and then run {', '.join(config.bitrates)} under {', '.join(config.conditions)}, "
        f"{config.repeats} times each, {config.requests} requests a run, on {on}; "
        f"at most {(60 * profiles + runs * (span_s + 5)) / 60:.0f} minutes"
    )


def facts(config: ValidateConfig, spec: ClusterSpec) -> Mapping[str, Any]:
    emulated = [
        "The link: frames are held back in user space until a link of the given capacity would have passed them, then cross loopback TCP; "
        "no loss, no propagation delay.",
        "Prompts are recall lines of the probe's own kind, at the trace's scaled lengths.",
    ]
    if config.compute == "paced":
        emulated.append("Prefill and decode: workers sleep the times of the profile and send stored KV through the real codec and sockets.")
    return {
        "cluster": f"{spec.prefill}P{spec.decode}D on {config.model_folder.name}",
        "compute": config.compute,
        "repeats": config.repeats,
        "requests": config.requests,
        "conditions": {name: _words(condition) for name, condition in config.conditions.items()},
        "policies": list(config.bitrates),
        "emulated": emulated,
    }


def _words(condition: Condition) -> str:
    network = condition.network
    capacity = network.capacity()
    low, high = (rate * 8 / 1e6 for rate in (min(capacity.bytes_per_s), max(capacity.bytes_per_s)))
    link = f"a link of {high:.4g} Mbit/s" if low == high else f"a link between {high:.4g} and {low:.4g} Mbit/s"
    pace = f"arrivals {condition.speedup:g} times as fast as the trace's"
    return f"{link}, {pace}, its lengths times {condition.isl_scale:g}, from request {condition.skip} on"


def _workload(config: ValidateConfig, condition: Condition) -> TraceWorkload:
    scaling = replace(
        config.workload.scaling,
        requests=config.requests,
        speedup=condition.speedup,
        isl_scale=condition.isl_scale,
        skip=condition.skip,
    )
    return replace(config.workload, scaling=scaling)


def _twin(config: ValidateConfig, condition: Condition, requests: Sequence[Any], profile: Profile) -> Twin:
    from experiments.prompts import prompts_for
    from experiments.twin import Twin

    return Twin(prompts_for(requests, config.seed), condition.network.capacity(), config.slo, profile)

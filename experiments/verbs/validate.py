"""`abkt validate`: the simulator predicts runs that it was not calibrated on, the machine runs them, VALIDATION.md holds the errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from abkt.profile import schema
from abkt.ranges import OutOfRange, bound, check_seed
from abkt.records import SLO
from abkt.spec import ModelSpec
from experiments.lib.config import MOST_WORKERS, STRICT, BitrateConfig, ProfilePath
from experiments.lib.manifest import write_manifest
from experiments.lib.network import Network, network_files
from experiments.lib.progress import bar
from experiments.lib.results import read_json, write_json, write_text
from experiments.lib.stamps import write_stamped
from experiments.lib.verb import VerbCall, verb
from experiments.lib.workload import TraceWorkload, read_workload
from experiments.validation.condition import Condition
from experiments.validation.document import document, emulated
from experiments.validation.folder import ValidationFolder, load_case
from experiments.validation.load import Load, planned, utilisations
from experiments.validation.page import write_report
from experiments.validation.predictions import now, write_predictions
from experiments.validation.scores import by_condition, by_stage, coverage, drift, errors, rank_correlation, regrets
from experiments.validation.switches import placement, switches
from experiments.validation.tables import SLEPT, conditions_table, stages_table, targets_table
from experiments.validation.targets import targets
from experiments.validation.trust import choices, plain, trust, winner

if TYPE_CHECKING:
    from pydantic import ConfigDict

    from abkt.profile.schema import Profile
    from abkt.serve import LocalClusterSpec
    from experiments.study.twin import Twin
    from sim.workload.requests import Request

SCHEMA_VERSION = 3  # 3: targets have intervals and an answer; choices, loads, trust and the verdict are new


@dataclass(frozen=True, slots=True)
class ValidateConfig:
    """network: the policies' first estimate of the link. prefill, decode: workers of a condition that sets none. targets: limits of the
    mean relative errors e2e, ttft and queue (queueing), and of regret, the share of goodput lost. drift: measure the machine again at the
    end. calibration: see experiments.models.calibration."""

    model_folder: Path | None
    shape: ModelSpec | None
    device: str
    network: Network
    workload: TraceWorkload
    bitrates: dict[str, BitrateConfig]
    conditions: dict[str, Condition]
    slo: SLO
    compute: str
    prefill: int
    decode: int
    requests: int
    repeats: int
    max_distortion: float
    calibration: Path | None
    profile: ProfilePath | None
    profile_minutes: float
    targets: dict[str, float]
    drift: bool
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        if self.compute not in ("real", "paced", "vllm"):
            raise ValueError(f"compute is {self.compute}; it must be real, paced or vllm")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device is {self.device}; it must be cpu or cuda")
        if self.device == "cuda" and self.compute == "vllm":
            raise ValueError("compute=vllm is measured on the CPU; give device=cpu")
        if self.device == "cuda" and self.compute == "real":
            raise ValueError("device=cuda with compute=real: two phases would share one GPU's time; add compute=paced, or take compute=gpu")
        if (self.model_folder is None) == (self.shape is None):
            raise ValueError("give model_folder, or null and the shape of a model to make, such as +model@shape=llama-3.1-8b")
        bound(self, "prefill", "decode", least=1, most=MOST_WORKERS)
        bound(self, "requests", "repeats", least=1, most=10_000_000)
        bound(self, "max_distortion", above=0, infinite=True)
        bound(self, "profile_minutes", above=0)
        check_seed(self)
        for name, limit in self.targets.items():
            if not 0 < limit < math.inf:
                raise OutOfRange(f"targets.{name} is {limit}; it must be above 0")
        if not self.conditions or not self.bitrates:
            raise ValueError("a validation needs a condition and a bitrate policy")
        if missing := {"e2e", "ttft", "queue", "regret"} - set(self.targets):
            raise ValueError(f"targets lacks {min(missing)}")
        for name, condition in self.sized().items():
            if self.compute != "paced" and condition.cluster != "1P1D":
                raise ValueError(f"{condition.cluster} with compute={self.compute} would share cores; add compute=paced")
            condition.check(name)

    @property
    def folder(self) -> Path:
        """Folder of the LLM."""
        assert self.model_folder or self.shape
        return self.model_folder or self.out / self.shape.name  # type: ignore[union-attr]

    def sized(self) -> dict[str, Condition]:
        """The conditions, each with its number of workers."""
        return {name: condition.sized(self.prefill, self.decode) for name, condition in self.conditions.items()}


@verb("validate")
def main(config: ValidateConfig, run: VerbCall) -> None:
    from experiments.lib.profiling import profile_machine
    from experiments.models.calibration import calibration_file
    from experiments.study.twin import run_real, run_simulated
    from experiments.validation.clusters import Clusters

    real = spec_of(config)
    check_device(config.device)
    if config.shape is None:  # a folder that holds no model is reported before anything is written
        real = replace(real, calibration=calibration_file(config.calibration, config.folder, real.layout()))
    conditions = config.sized()
    for name, condition in conditions.items():
        condition.check_namespaces(name)
    workloads = {name: requests_of(config, condition) for name, condition in conditions.items()}
    known = schema.load(config.profile) if config.profile else None
    plans = {name: planned(condition, workloads[name], known) for name, condition in conditions.items()} if known else {}
    print(plan_line(config, [load.span_s for _, load in plans.values()]))
    config.out.mkdir(parents=True, exist_ok=True)
    if config.shape:
        from experiments.validation.shaped import make

        print(f"model: {config.folder}, random weights, {config.shape.parameters * 2 / 1e9:.0f} GB; takes minutes unless it exists already")
        make(config.shape, config.folder, config.seed)
    profile = known or profile_machine(real, config.out, config.seed, minutes=config.profile_minutes)
    profile.save(config.out / "profile.json")
    plans = plans or {name: planned(condition, workloads[name], profile) for name, condition in conditions.items()}
    conditions, loads = {name: condition for name, (condition, _) in plans.items()}, {name: load for name, (_, load) in plans.items()}
    if known is None:
        print(plan_line(config, [load.span_s for load in loads.values()]))
    spec = replace(real, shares_device=False, paced=config.out / "profile.json") if config.compute == "paced" else real
    folder = ValidationFolder(config.out, config.repeats)
    twins = {name: _twin(config, condition, requests_of(config, condition), profile) for name, condition in conditions.items()}
    for name, twin in twins.items():  # predict before anything runs
        for policy, bitrate in config.bitrates.items():
            run_simulated(twin, conditions[name].spec(spec), conditions[name].estimated(bitrate), folder.simulated(name, policy))
    write_predictions(folder, conditions, config.bitrates, loads)
    begun = now()
    with Clusters(spec, config.out, config.seed) as clusters:
        for repeat in range(config.repeats):  # outermost, so that drift of the machine counts as noise and not as a bias of one policy
            for name, twin in twins.items():
                for policy, bitrate in config.bitrates.items():
                    cluster, told = clusters.of(conditions[name]), conditions[name].estimated(bitrate)
                    with bar(f"{repeat + 1} of {config.repeats}, {name}, {policy}", len(twin.prompts)) as progress:
                        run_real(twin, cluster, told, folder.real(name, policy, repeat), progress.update)
    again: dict[str, float] = {}
    if config.drift:
        again = drift(profile, profile_machine(real, config.out, config.seed, "profile again", config.profile_minutes))
    report(config, run, folder, profile, again, conditions, loads, begun)


def spec_of(config: ValidateConfig) -> LocalClusterSpec:
    """The cluster that is measured. vLLM's prefill server sends by one policy that depends on the link, and by those that do not."""
    from abkt.serve import LocalClusterSpec
    from experiments.vllm.spec import VllmSpec

    if config.compute != "vllm":
        return LocalClusterSpec(config.folder, device=config.device, shares_device=config.device == "cuda")
    own = [bitrate for bitrate in config.bitrates.values() if "link" in bitrate]
    spec = VllmSpec(config.folder, bitrate=own[0] if own else None, deadline_s=config.slo.ttft_s)
    for bitrate in config.bitrates.values():
        spec.asked(bitrate)
    return spec


def check_device(device: str) -> None:
    """Raises ValueError, one line, where this machine has no such device."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("device=cuda: this machine has no GPU that PyTorch can use")


def report(
    config: ValidateConfig,
    run: VerbCall,
    folder: ValidationFolder,
    profile: Profile,
    again: Mapping[str, float],
    conditions: Mapping[str, Condition],
    loads: Mapping[str, Load],
    begun: str,
) -> None:
    """Write validation.parquet, validation.json, VALIDATION.md, report.html and the manifest from the records of the runs.

    conditions, loads : as planned. begun: when the machine began to run, in ISO format.
    """
    from experiments.report.terminal import show_table, show_verdict

    cases, paced = [load_case(folder, name, policy) for name in conditions for policy in config.bitrates], config.compute == "paced"
    found = errors(cases)
    stages, regret, correlation = by_stage(found), regrets(cases, config.max_distortion, config.slo), rank_correlation(cases)
    covered, met = coverage(cases, profile), targets(cases, regret, config.targets, {n: c.utilisation for n, c in conditions.items()})
    each, placed, moved = by_condition(found), placement(cases), switches(cases)
    made, busy = choices(cases, regret, config.max_distortion, config.slo), utilisations(cases, conditions, loads)
    line, answer = trust(met, made, paced), winner(made, cases)
    told = {**facts(config, conditions), "drift": again, "trust": line, "loads": busy}
    named = f"Predicted {read_json(folder.path / 'predictions.json')['predicted_at']}, measured from {begun}."
    write_stamped(run.out / "validation.parquet", pa.Table.from_pandas(found.assign(compute=config.compute), preserve_index=False), run)
    write_json(
        run.out / "validation.json",
        {
            "schema_version": SCHEMA_VERSION,
            "compute": config.compute,
            "circular": [*SLEPT] if paced else [],
            "verdict": asdict(answer),
            "trust": line,
            "made": named,
            "targets": [{**asdict(target), "words": target.words} for target in met],
            "choices": plain(made),
            "loads": busy,
            "stages": stages.to_dict("records"),
            "regret": [asdict(r) for r in regret],
            "rank_correlation": correlation,
            "coverage": covered,
            "conditions": each,
            "placement": placed,
            "switches": moved,
            "drift": again,
        },
    )
    tables = {
        "Targets": targets_table(met, paced),
        "Conditions": conditions_table(each, busy, made, paced),
        "Errors by stage": stages_table(stages.to_dict("records"), paced),
    }
    write_text(run.out / "VALIDATION.md", document({**told, "made": named}, tables, regret, correlation, covered, placed, moved))
    drives = [path for condition in config.conditions.values() for path in network_files(condition.network)]
    write_manifest(run, [config.workload.path.expanduser(), *drives, config.folder / "config.json"])
    page = write_report(run.out, told, answer, f"{line} {named}", tables, found, read_json(run.out / "manifest.json"))
    for title in ("Targets", "Conditions"):
        show_table(tables[title], title)
    print(line)
    show_verdict(answer)
    print(f"validation: {run.out / 'VALIDATION.md'}; report: {page}")


def plan_line(config: ValidateConfig, spans_s: Sequence[float]) -> str:
    """One line: the runs, the clusters, and the time that they take. spans_s: the time of each condition's arrivals; empty until the
    machine is profiled, since a utilisation gives a speedup only then."""
    runs, profiles = len(config.bitrates) * config.repeats, (config.profile is None) + config.drift
    first = "profile this machine; " if config.profile is None else ""
    took = f"about {(60 * profiles + runs * sum(span_s + 4 for span_s in spans_s)) / 60:.0f} minutes"
    return (
        f"plan: {first}predict and then run {', '.join(config.bitrates)} under {', '.join(config.conditions)}, "
        f"{config.repeats} times each, {config.requests} requests a run, on {_clusters(config)} compute={config.compute}; "
        + (took if spans_s else "its time follows from the profile")
    )


def facts(config: ValidateConfig, conditions: Mapping[str, Condition] | None = None) -> Mapping[str, Any]:
    """conditions: as planned; None: as configured."""
    of = conditions or config.sized()
    return {
        "cluster": f"{_clusters(config)} on {config.folder.name}",
        "compute": config.compute,
        "device": config.device,
        "repeats": config.repeats,
        "requests": config.requests,
        "conditions": {name: condition.words() for name, condition in of.items()},
        "policies": list(config.bitrates),
        "emulated": emulated(of.values(), config.compute, config.device == "cuda"),
    }


def _clusters(config: ValidateConfig) -> str:
    return ", ".join(dict.fromkeys(condition.cluster for condition in config.sized().values()))


def requests_of(config: ValidateConfig, condition: Condition) -> list[Request]:
    """The requests of a condition, at its speedup."""
    scaling = replace(
        config.workload.scaling,
        requests=config.requests,
        speedup=condition.speedup,
        isl_scale=condition.isl_scale,
        skip=condition.skip,
    )
    return read_workload(replace(config.workload, scaling=scaling), config.seed)[0]


def _twin(config: ValidateConfig, condition: Condition, requests: Sequence[Any], profile: Profile) -> Twin:
    from experiments.models.prompts import prompts_for
    from experiments.study.twin import Twin

    return Twin(
        prompts_for(requests, config.folder, config.seed),
        condition.network.capacity(),
        config.slo,
        profile,
        roles=condition.roles,
        shared=condition.shared,
        delay_s=condition.network.delay_s,
        payload_share=condition.payload_share,
    )

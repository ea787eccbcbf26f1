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
from experiments.lib.config import MOST_WORKERS, STRICT, PolicyConfig, ProfilePath
from experiments.lib.manifest import write_manifest
from experiments.lib.network import Network, network_files
from experiments.lib.progress import bar
from experiments.lib.results import write_json, write_text
from experiments.lib.stamps import write_stamped
from experiments.lib.verb import VerbCall, verb
from experiments.lib.workload import TraceWorkload, read_workload
from experiments.validation.condition import Condition
from experiments.validation.document import document, emulated, percent, verdict
from experiments.validation.folder import ValidationFolder, load_case
from experiments.validation.scores import by_condition, by_stage, coverage, drift, errors, rank_correlation, regrets, targets
from experiments.validation.switches import placement, switches

if TYPE_CHECKING:
    from pydantic import ConfigDict

    from abkt.profile.schema import Profile
    from experiments.study.twin import Twin

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class ValidateConfig:
    """network: the policies' first estimate of the link. prefill, decode: workers of a condition that sets none. targets: limits of the
    mean relative errors e2e and ttft, and of regret, the share of goodput lost. drift: measure the machine again at the end."""

    model_folder: Path | None
    shape: ModelSpec | None
    device: str
    network: Network
    workload: TraceWorkload
    bitrates: dict[str, PolicyConfig]
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
    targets: dict[str, float]
    drift: bool
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        if self.compute not in ("real", "paced"):
            raise ValueError(f"compute is {self.compute}; it must be real or paced")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device is {self.device}; it must be cpu or cuda")
        if self.device == "cuda" and self.compute == "real":
            raise ValueError("device=cuda with compute=real: two phases would share one GPU's time; add compute=paced, or take compute=gpu")
        if (self.model_folder is None) == (self.shape is None):
            raise ValueError("give model_folder, or null and the shape of a model to make, such as +model@shape=llama-3.1-8b")
        bound(self, "prefill", "decode", least=1, most=MOST_WORKERS)
        bound(self, "requests", "repeats", least=1, most=10_000_000)
        bound(self, "max_distortion", above=0, infinite=True)
        check_seed(self)
        for name, limit in self.targets.items():
            if not 0 < limit < math.inf:
                raise OutOfRange(f"targets.{name} is {limit}; it must be above 0")
        if not self.conditions or not self.bitrates:
            raise ValueError("a validation needs a condition and a bitrate policy")
        if missing := {"e2e", "ttft", "regret"} - set(self.targets):
            raise ValueError(f"targets lacks {min(missing)}")
        for name, condition in self.sized().items():
            if self.compute == "real" and condition.cluster != "1P1D":
                raise ValueError(f"{condition.cluster} with compute=real would share cores; add compute=paced")
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
    from abkt.serve import LocalClusterSpec
    from experiments.lib.calibration import calibration_file
    from experiments.lib.profiling import profile_machine
    from experiments.study.twin import run_real, run_simulated
    from experiments.validation.clusters import Clusters

    real = LocalClusterSpec(config.folder, device=config.device, shares_device=config.device == "cuda")
    check_device(config.device)
    if config.shape is None:  # a folder that holds no model is reported before anything is written
        real = replace(real, calibration=calibration_file(config.calibration, config.folder, real.layout()))
    conditions = config.sized()
    for name, condition in conditions.items():
        condition.check_namespaces(name)
    workloads = {name: read_workload(_workload(config, condition), config.seed)[0] for name, condition in conditions.items()}
    known = schema.load(config.profile) if config.profile else None
    print(plan_line(config, max(requests[-1].arrival_s for requests in workloads.values())))
    config.out.mkdir(parents=True, exist_ok=True)
    if config.shape:
        from experiments.validation.shaped import make

        print(f"model: {config.folder}, random weights, {config.shape.parameters * 2 / 1e9:.0f} GB; takes minutes unless it exists already")
        make(config.shape, config.folder, config.seed)
    profile = known or profile_machine(real, config.out, config.seed)
    profile.save(config.out / "profile.json")
    spec = replace(real, shares_device=False, paced=config.out / "profile.json") if config.compute == "paced" else real
    folder = ValidationFolder(config.out, config.repeats)
    twins = {name: _twin(config, condition, workloads[name], profile) for name, condition in conditions.items()}
    for name, twin in twins.items():  # predict before anything runs
        for policy, bitrate in config.bitrates.items():
            run_simulated(twin, conditions[name].spec(spec), bitrate, folder.simulated(name, policy))
    with Clusters(spec, config.out, config.seed) as clusters:
        for repeat in range(config.repeats):  # outermost, so that drift of the machine counts as noise and not as a bias of one policy
            for name, twin in twins.items():
                for policy, bitrate in config.bitrates.items():
                    cluster = clusters.of(conditions[name])
                    with bar(f"{repeat + 1} of {config.repeats}, {name}, {policy}", len(twin.prompts)) as progress:
                        run_real(twin, cluster, bitrate, folder.real(name, policy, repeat), progress.update)
    again: dict[str, float] = {}
    if config.drift:
        again = drift(profile, profile_machine(real, config.out, config.seed, "profile again"))
    report(config, run, folder, profile, again)


def check_device(device: str) -> None:
    """Raises ValueError, one line, where this machine has no such device."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("device=cuda: this machine has no GPU that PyTorch can use")


def report(config: ValidateConfig, run: VerbCall, folder: ValidationFolder, profile: Profile, again: Mapping[str, float]) -> None:
    """Write validation.parquet, validation.json, VALIDATION.md and the manifest from the records of the runs."""
    cases = [load_case(folder, condition, policy) for condition in config.conditions for policy in config.bitrates]
    found = errors(cases)
    stages, regret, correlation = by_stage(found), regrets(cases, config.max_distortion, config.slo), rank_correlation(cases)
    covered, met = coverage(cases, profile), targets(stages, regret, config.targets)
    each, placed, moved = by_condition(found), placement(cases), switches(cases)
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
            "conditions": each,
            "placement": placed,
            "switches": moved,
            "drift": again,
        },
    )
    text = document({**facts(config), "drift": again}, stages, met, regret, correlation, covered, each, placed, moved)
    write_text(run.out / "VALIDATION.md", text)
    drives = [path for condition in config.conditions.values() for path in network_files(condition.network)]
    write_manifest(run, [config.workload.path.expanduser(), *drives, config.folder / "config.json"])
    for target in met:
        words = f"{target['name']} {percent(target['value'])}, target {percent(target['target'])}, noise {percent(target['noise'])}"
        print(f"{words}; met: {verdict(target)}")
    print(f"validation: {run.out / 'VALIDATION.md'}")


def plan_line(config: ValidateConfig, span_s: float) -> str:
    """One line: the runs, the clusters, and the most time that they take."""
    runs, profiles = len(config.conditions) * len(config.bitrates) * config.repeats, (config.profile is None) + config.drift
    first = "profile this machine; " if config.profile is None else ""
    return (
        f"plan: {first}predict and then run {', '.join(config.bitrates)} under {', '.join(config.conditions)}, "
        f"{config.repeats} times each, {config.requests} requests a run, on {_clusters(config)} compute={config.compute}; "
        f"at most {(60 * profiles + runs * (span_s + 5)) / 60:.0f} minutes"
    )


def facts(config: ValidateConfig) -> Mapping[str, Any]:
    conditions = config.sized()
    return {
        "cluster": f"{_clusters(config)} on {config.folder.name}",
        "compute": config.compute,
        "device": config.device,
        "repeats": config.repeats,
        "requests": config.requests,
        "conditions": {name: condition.words() for name, condition in conditions.items()},
        "policies": list(config.bitrates),
        "emulated": emulated(conditions.values(), config.compute == "paced", config.device == "cuda"),
    }


def _clusters(config: ValidateConfig) -> str:
    return ", ".join(dict.fromkeys(condition.cluster for condition in config.sized().values()))


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
    from experiments.lib.prompts import prompts_for
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

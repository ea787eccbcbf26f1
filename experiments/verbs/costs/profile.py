"""`abkt profile`: measure this machine with a real prefill and a real decode process; the simulator reads the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.ranges import bound, check_seed
from experiments.lib.config import STRICT
from experiments.lib.verb import VerbCall, verb

if TYPE_CHECKING:
    from pydantic import ConfigDict


PROCESS = {"abkt": "process", "vllm": "server of vLLM"}


@dataclass(frozen=True, slots=True)
class ProfileConfig:
    """model_folder: a Hugging Face folder. served_by: abkt or vllm. calibration: see experiments.models.calibration. minutes: about how
    long it takes. seed: of the calibration prompts."""

    model_folder: Path
    served_by: str
    calibration: Path | None
    minutes: float
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        check_seed(self)
        bound(self, "minutes", above=0)
        if self.served_by not in ("abkt", "vllm"):
            raise ValueError(f"engine is {self.served_by}; it must be abkt or vllm")


@verb("profile")
def main(config: ProfileConfig, run: VerbCall) -> None:
    from abkt.serve import LocalClusterSpec
    from experiments.lib.curves import save_curves
    from experiments.lib.manifest import write_manifest
    from experiments.lib.profiling import print_fits, profile_machine
    from experiments.models.calibration import calibration_file
    from experiments.models.prompts import prompt_kind
    from experiments.vllm.spec import VllmSpec

    spec = LocalClusterSpec(config.model_folder) if config.served_by == "abkt" else VllmSpec(config.model_folder)
    layout = spec.layout()  # reports a folder that holds no model before anything is written
    spec = replace(spec, calibration=calibration_file(config.calibration, config.model_folder, layout))
    prompts = prompt_kind(config.model_folder)
    print(
        f"plan: calibrate {layout.model.name} on one prefill and one decode {PROCESS[config.served_by]} of this machine, with {prompts} as "
        f"prompts; "
        f"{spec.compute_dtype().words(layout.model.dtype)}; lengths and time follow the first prompts",
        flush=True,
    )
    config.out.mkdir(parents=True, exist_ok=True)
    profile = profile_machine(spec, config.out, config.seed, minutes=config.minutes)
    profile.save(config.out / "profile.json")
    save_curves(profile.curves, config.out / "curves.json")
    write_manifest(run, [config.model_folder / "config.json"])
    print_fits(profile)
    print(f"profile: {config.out / 'profile.json'}")

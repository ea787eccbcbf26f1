"""Measure this machine with a real prefill and a real decode process; write what the model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from experiments.lib.config import STRICT
from experiments.lib.verb import VerbCall, verb

if TYPE_CHECKING:
    from pydantic import ConfigDict

    from abkt.profile.schema import Profile
    from abkt.serve.cluster import LocalCluster


@dataclass(frozen=True, slots=True)
class ProfileConfig:
    """model_folder: a Hugging Face folder. seed: of the calibration prompts."""

    model_folder: Path
    seed: int
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@verb("profile")
def main(config: ProfileConfig, run: VerbCall) -> None:
    from abkt.serve import LocalCluster, LocalClusterSpec
    from experiments.lib.curves import save_curves
    from experiments.lib.manifest import write_manifest
    from experiments.lib.progress import bar

    print(f"plan: calibrate {config.model_folder.name} on one prefill and one decode process of this machine; about a minute")
    spec = LocalClusterSpec(config.model_folder)
    spec.layout()  # a folder that is no model is said before anything is made
    config.out.mkdir(parents=True, exist_ok=True)
    with LocalCluster(spec, config.out) as cluster, bar("profile") as progress:
        profile = measure(cluster, config.seed, progress.step)
    profile.save(config.out / "profile.json")
    save_curves(profile.curves, config.out / "curves.json")
    write_manifest(run, [config.model_folder / "config.json"])
    print_fits(profile)
    print(f"profile: {config.out / 'profile.json'}")


def measure(cluster: LocalCluster, seed: int, step: Callable[[str], None]) -> Profile:
    import numpy as np

    from abkt.measure.cluster import calibrate
    from abkt.serve.frontend.prompt import Prompt
    from experiments.probe.tasks import recall_prompt

    def prompts(shapes: Sequence[tuple[int, int, float]]) -> list[Prompt]:
        made = []
        for i, (isl, osl, arrival_s) in enumerate(shapes):
            tokens, expected = recall_prompt(np.random.default_rng((seed, i)), isl)
            made.append(Prompt(i, arrival_s, tokens, osl, expected))
        return made

    return calibrate(cluster, prompts, step)


def print_fits(profile: Profile) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "seconds =", "residual", "samples", title="costs of this machine")
    for stage, fit in sorted(profile.fits.items()):
        terms = " + ".join(f"{c:.3g} {f}" if f != "1" else f"{c:.3g}" for f, c in fit.by_feature.items() if c) or "0"
        table.add_row(stage, terms, f"{fit.residual:.1%}", str(fit.samples))
    Console().print(table)

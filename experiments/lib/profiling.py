"""The profile of this machine: measured on one prefill and one decode process, and shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.lib.progress import bar

if TYPE_CHECKING:
    from abkt.net.namespaces import Namespaces
    from abkt.profile.schema import Profile
    from abkt.serve import LocalCluster, LocalClusterSpec


def profile_machine(spec: LocalClusterSpec, folder: Path, seed: int, title: str = "profile", minutes: float | None = None) -> Profile:
    """Start a cluster of `spec`, measure its profile under a progress bar, and stop it.

    folder: for the logs of its workers. minutes: about how long it may take; None: as long as calibrate's default.
    """
    from abkt.measure.cluster import steps

    with started(cluster_of(spec, folder)) as cluster, bar(title, steps(spec)) as progress:
        return profile_cluster(cluster, seed, progress.step, minutes)


def cluster_of(spec: LocalClusterSpec, folder: Path, namespaces: Namespaces | None = None, pacing: str = "userspace") -> LocalCluster:
    """The cluster of a spec, not started yet: our own workers, or vLLM's servers, which have the same methods."""
    from abkt.serve.cluster import LocalCluster
    from experiments.vllm.spec import VllmSpec

    if isinstance(spec, VllmSpec):
        from experiments.vllm.cluster import VllmCluster

        return VllmCluster(spec, folder, namespaces, pacing)  # type: ignore[return-value]
    return LocalCluster(spec, folder, namespaces, pacing)


@contextmanager
def started(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """The cluster, with a bar while its workers load the model and warm up, which takes minutes for a large one."""
    with ExitStack() as stack:
        with bar("start the workers", 1):
            stack.enter_context(cluster)
        yield cluster


def profile_cluster(cluster: LocalCluster, seed: int, step: Callable[[str], None], minutes: float | None = None) -> Profile:
    """Measure the profile on a running cluster. seed: of the calibration prompts. step: called with the name of each step.

    minutes: as in profile_machine. What will be measured, and about how long it takes, is printed after the first prompts.
    """
    import numpy as np

    from abkt.measure.cluster import BUDGET_S, calibrate
    from abkt.serve.frontend.prompt import Prompt
    from experiments.models.prompts import prompt_tokens

    def prompts(shapes: Sequence[tuple[int, int, float]]) -> list[Prompt]:
        made = []
        for i, (isl, osl, arrival_s) in enumerate(shapes):
            tokens, expected = prompt_tokens(cluster.spec.model_folder, np.random.default_rng((seed, i)), isl)
            made.append(Prompt(i, arrival_s, tokens, osl, expected))
        return made

    budget_s = BUDGET_S if minutes is None else 60 * minutes
    return calibrate(cluster, prompts, step, lambda line: print(f"profile of {cluster.model.name}: {line}", flush=True), budget_s)


def print_fits(profile: Profile) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "seconds =", "residual", "samples", title="costs of this machine")
    for stage, fit in sorted(profile.fits.items()):
        terms = " + ".join(f"{c:.3g} {f}" if f != "1" else f"{c:.3g}" for f, c in fit.by_feature.items() if c) or "0"
        table.add_row(stage, terms, f"{fit.residual:.1%}", str(fit.samples))
    Console().print(table)

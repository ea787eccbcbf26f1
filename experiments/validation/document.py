"""FIDELITY.md: what a validation found, what was emulated, and what no hardware has confirmed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.validation.scores import Regret

UNCONFIRMED = (
    "GPUs: no time of a GPU enters these figures; costs from data sheets and published kernel tables are not validated by them.",
    "Clusters of many machines: switches, incast at line rate, RDMA, NCCL.",
    "Big models: the probe has 5 M parameters; what scales with a model is taken from its shape.",
    "Faults, role changes and prefix caches, unless a condition above names them.",
)


def fidelity(
    facts: Mapping[str, Any],
    stages: pd.DataFrame,
    met: Sequence[Mapping[str, Any]],
    regrets: Sequence[Regret],
    correlation: Mapping[str, Mapping[str, float]],
    covered: Mapping[str, float],
) -> str:
    """facts: cluster, compute, repeats, requests, conditions (name -> words), policies, emulated (sentences), drift (stage -> share)."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, autoescape=False)
    environment.filters |= {"percent": percent, "figure": figure, "ms": ms, "verdict": verdict}
    return environment.get_template("fidelity.md.j2").render(
        facts=facts,
        stages=stages.to_dict("records"),
        met=met,
        regrets=regrets,
        correlation=correlation,
        covered=covered,
        unconfirmed=UNCONFIRMED,
    )


def verdict(target: Mapping[str, Any]) -> str:
    """A figure within the machine's noise alone is no success of the model."""
    if target["value"] <= target["target"]:
        return "yes"
    return "within the noise" if target["met"] else "no"


def percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}".replace("%", " %").replace("-", "−")


def figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}".replace("-", "−")


def ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds * 1e3:+.0f} ms".replace("-", "−")

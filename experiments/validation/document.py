"""FIDELITY.md: what a validation found, what was emulated, and what no hardware has confirmed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.validation.condition import Condition
from experiments.validation.scores import Regret

NO_GPU = "GPUs: no time of a GPU enters these figures; costs from data sheets and published kernel tables are not validated by them."
OTHER_GPUS = "Other GPUs than this one, and several of them: costs from data sheets and published kernel tables are not validated by it."
UNCONFIRMED = (
    "Clusters of many machines: switches, incast at line rate, RDMA, NCCL.",
    "Other models than this one: what scales with a model is taken from its shape.",
    "Faults, role changes and prefix caches, unless a condition above names them.",
)


def fidelity(
    facts: Mapping[str, Any],
    stages: pd.DataFrame,
    met: Sequence[Mapping[str, Any]],
    regrets: Sequence[Regret],
    correlation: Mapping[str, Mapping[str, float]],
    covered: Mapping[str, float],
    conditions: Sequence[Mapping[str, Any]] = (),
    placed: Mapping[str, float] | None = None,
    switches: Sequence[Mapping[str, Any]] = (),
) -> str:
    """facts: cluster, compute, device, repeats, requests, conditions (name -> words), policies, emulated (sentences), drift (stage ->
    share). conditions, placed, switches: see scores.by_condition and validation.switches.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, autoescape=False)
    environment.filters |= {"percent": percent, "figure": figure, "ms": ms, "verdict": verdict}
    return environment.get_template("fidelity.md.j2").render(
        facts=facts,
        stages=stages.to_dict("records"),
        met=met,
        regrets=regrets,
        correlation=correlation,
        covered=covered,
        conditions=conditions,
        placed=placed or {},
        switches=switches,
        unconfirmed=(OTHER_GPUS if facts["device"] == "cuda" else NO_GPU, *UNCONFIRMED),
    )


def emulated(conditions: Collection[Condition], paced: bool, gpu: bool) -> list[str]:
    """What of these runs was not as in a real cluster, a sentence each."""
    said = []
    if any(not condition.namespaces for condition in conditions):
        said.append(
            "The link: frames are held back in user space until a link of the given capacity would have passed them, then cross loopback "
            "TCP; no loss, no propagation delay, and none but the sender's own link is limited."
        )
    if any(condition.namespaces for condition in conditions):
        said.append(
            "Links that senders share or that have a delay: network namespaces of one host, each egress shaped by a token bucket, "
            "TCP between them. Of the capacity the model has what packet headers leave."
        )
    if any(condition.moves for condition in conditions):
        said.append("Changes of roles: the worker's model and pool stay, so nothing is loaded or rebuilt but its listener or its senders.")
    said.append("Prompts are recall lines of the probe's own kind, at the trace's scaled lengths.")
    if paced:
        said.append("Prefill and decode: workers sleep the times of the profile and send stored KV through the real codec and sockets.")
    if gpu:
        said.append(
            "Two GPUs: the workers are processes that share one, and would take slices of its time. So prefill and decode took turns "
            "while they were measured, and slept what they had taken alone afterwards; the codec ran on the GPU they share."
        )
        said.append("The way between two GPUs: through the host's memory and loopback TCP.")
    return said


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

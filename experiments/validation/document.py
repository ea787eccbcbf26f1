"""VALIDATION.md: the errors of a validation, the parts that were emulated, and the parts that no hardware has confirmed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.report import words
from experiments.report.page import Table
from experiments.study.ranking import Regret
from experiments.validation.condition import Condition
from experiments.validation.tables import markdown
from experiments.validation.trust import CIRCULAR_SENTENCE

NO_GPU = "GPUs: these figures contain no time of a GPU, so they do not validate costs from data sheets and published kernel tables."
OTHER_GPUS = "Other GPUs than this one, and several GPUs: this does not validate costs from data sheets and published kernel tables."
VLLM = (
    "Nothing of vLLM: two of its servers compute, behind the proxy. The prefill server takes one prompt at a time. In the simulator a "
    "prefill node's next prompt waits for the coding of the one before and for the ask, which in vLLM run beside it."
)
UNCONFIRMED = (
    "Clusters of many machines: switches, incast at line rate, RDMA.",
    "Other models than this one: costs are scaled by the shape of the model.",
    "Faults, role changes and prefix caches, unless a condition above names them.",
)


def document(
    facts: Mapping[str, Any],
    tables: Mapping[str, Table],
    regrets: Sequence[Regret],
    correlation: Mapping[str, Mapping[str, float]],
    covered: Mapping[str, float],
    placed: Mapping[str, float],
    switches: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text of VALIDATION.md.

    Parameters
    ----------
    facts : cluster, compute, device, repeats, requests, conditions (name -> words), policies, emulated (sentences), drift (stage -> share),
        trust (a line), made (when it was predicted and measured).
    tables : title -> table, as validation.tables makes them.
    regrets, correlation, covered : as regrets, rank_correlation and coverage of validation.scores give them.
    placed, switches : as placement and switches of validation.switches give them.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, autoescape=False)
    environment.filters |= {"percent": words.percent, "figure": figure, "ms": ms, "markdown": markdown}
    return environment.get_template("validation.md.j2").render(
        facts=facts,
        tables=tables,
        circular=CIRCULAR_SENTENCE if facts["compute"] == "paced" else "",
        regrets=regrets,
        correlation=correlation,
        covered=covered,
        placed=placed,
        switches=switches,
        unconfirmed=(OTHER_GPUS if facts["device"] == "cuda" else NO_GPU, *UNCONFIRMED),
    )


def emulated(conditions: Collection[Condition], compute: str, gpu: bool) -> list[str]:
    """The differences between these runs and a real cluster, one sentence each."""
    said = []
    if any(not condition.namespaces for condition in conditions):
        said.append(
            "The link: frames are held back in user space until a link of the given capacity would have passed them, then cross loopback "
            "TCP; there is no loss and no propagation delay, and only the sender's own link is limited."
        )
    if any(condition.namespaces for condition in conditions):
        said.append(
            "Links between network namespaces of one host, also those that senders share: each egress shaped by a token bucket, "
            "TCP between them. The simulator has that capacity less the packet headers."
        )
    if any(condition.moves for condition in conditions):
        said.append("Changes of roles: the worker keeps its model and its pool; only its listener or its senders are rebuilt.")
    said.append("Prompts are recall lines as the probe was trained on, or text for other models, at the trace's scaled lengths.")
    if compute == "vllm":
        said.append(VLLM)
    if compute == "paced":
        said.append("Prefill and decode: workers sleep the times of the profile and send stored KV through the real codec and sockets.")
    if gpu:
        said.append(
            "Two GPUs: the workers share one GPU, which would slice its time between them. So prefill and decode took turns while they "
            "were measured, and slept those times afterwards; the codec ran on the shared GPU."
        )
        said.append("The path between two GPUs: through the host's memory and loopback TCP.")
    return said


def figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}".replace("-", "−")


def ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds * 1e3:+.0f} ms".replace("-", "−")

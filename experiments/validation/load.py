"""The load of a condition: how fast its requests arrive and how fast its link is, so that prefill and link are as busy as asked for.

The utilisation of prefill is the share of the time in which the prefill workers hand over, compute and encode. It is planned from the
profile's costs, with the encoding of the deepest stream. Its time is that in which the requests arrive, with one mean gap more than there
are, so that the share does not depend on the number of requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from abkt.capacity import Capacity
from abkt.profile.schema import Profile
from experiments.validation.condition import Condition
from experiments.validation.folder import ValidationCase
from sim.workload.requests import Request

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Load:
    """The planned load. utilisation: of prefill. link: share of the link's capacity that the raw KV takes. rate_per_s: of requests. span_s:
    the time in which they arrive."""

    utilisation: float
    link: float
    rate_per_s: float
    span_s: float


def work_s(requests: Sequence[Request], profile: Profile) -> float:
    """The seconds that prefill workers need for the requests: handover, pass, and encoding at full depth."""
    handover_s = profile.fit("handover").seconds() if "handover" in profile.fits else 0.0
    return sum(handover_s + profile.fit("prefill").seconds(tokens=r.isl) + profile.codec_s("8", r.isl)[0] for r in requests)


def planned(condition: Condition, requests: Sequence[Request], profile: Profile) -> tuple[Condition, Load]:
    """A sized condition with the speedup and the link that its utilisations ask for, and its load.

    Parameters
    ----------
    condition : the condition; speedup and link stay as they are where it asks for no utilisation.
    requests : its requests, at its speedup.
    profile : the costs of this machine.

    Raises
    ------
    ValueError : one line, if all requests arrive at once, so that no speedup can give a utilisation.
    """
    work, span_s = work_s(requests, profile), span_of([r.arrival_s for r in requests])
    if condition.utilisation:
        if not span_s > 0:
            raise ValueError(f"a utilisation of {condition.utilisation:g} needs requests that arrive one after another; all arrive at once")
        wanted_s = work / (condition.prefill * condition.utilisation)
        condition, span_s = replace(condition, speedup=condition.speedup * span_s / wanted_s), wanted_s
    raw_bytes = sum(profile.model.kv_bytes(r.isl) for r in requests)
    senders = 1 if condition.shared else condition.prefill
    link = raw_bytes / (senders * span_s * mean_bytes_per_s(condition.network.capacity(), span_s)) if span_s > 0 else math.inf
    if condition.link_utilisation:
        network = condition.network
        condition = replace(condition, network=replace(network, gbps=network.gbps * link / condition.link_utilisation))
        link = condition.link_utilisation
    utilisation = work / (condition.prefill * span_s) if span_s > 0 else math.inf
    return condition, Load(utilisation, link, len(requests) / span_s if span_s > 0 else math.inf, span_s)


def span_of(arrivals_s: Sequence[float]) -> float:
    """The time in which requests arrive, with a mean gap after the last one."""
    count = len(arrivals_s)
    return (max(arrivals_s) - min(arrivals_s)) * count / (count - 1) if count > 1 else 0.0


def mean_bytes_per_s(capacity: Capacity, until_s: float) -> float:
    """The mean rate of a link from 0 until until_s."""
    now_s, passed = 0.0, 0.0
    while now_s < until_s:
        rate, change_s = capacity.at(now_s)
        end_s = min(change_s, until_s)
        passed, now_s = passed + rate * (end_s - now_s), end_s
    return passed / until_s if until_s > 0 else capacity.bytes_per_s[0]


def utilisation_of(rows: pd.DataFrame, prefill: int) -> float:
    """The utilisation of prefill in a run, from its records: passes and encodings, without handovers."""
    done = rows[rows.outcome == "completed"]
    span_s = span_of(rows.arrival_s.tolist())
    return float((done.prefill_busy_s + done.encode_busy_s).sum() / (prefill * span_s)) if span_s > 0 else math.nan


def utilisations(
    cases: Sequence[ValidationCase], conditions: Mapping[str, Condition], loads: Mapping[str, Load]
) -> dict[str, dict[str, float]]:
    """condition -> planned utilisation of prefill and of the link, and the utilisation of prefill as predicted and as measured, as means
    over the policies."""
    found = {}
    for name, load in loads.items():
        group, prefill = [case for case in cases if case.condition == name], conditions[name].prefill
        found[name] = {
            "planned": load.utilisation,
            "planned_link": load.link,
            "rate_per_s": load.rate_per_s,
            "predicted": _mean([utilisation_of(case.predicted, prefill) for case in group]),
            "measured": _mean([utilisation_of(rows, prefill) for case in group for rows in case.measured]),
        }
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan

"""Whether the simulator's errors are within their limits: met, not met, or cannot tell.

The error of a group of cases is the mean size of the relative error of their means. Its 95 % interval is a paired bootstrap over
stretches of requests and over the repeats. A limit below the machine's own noise counts as the noise, because even a perfect simulator
would differ by that from the next run. It is met if the whole interval lies within it, not met if the whole interval lies above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.lib import intervals
from experiments.lib.intervals import UNKNOWN, Interval
from experiments.study.ranking import Regret
from experiments.validation.folder import ValidationCase
from experiments.validation.scores import noise

LEAST_REQUESTS = 30  # completed requests of a run; with fewer nothing is judged
QUEUE_AT = 0.85  # the planned utilisation at which the error of queueing is judged
WORDS = {"met": "met", "not_met": "not met", "cannot_tell": "cannot tell"}
Answer = Literal["met", "not_met", "cannot_tell"]


@dataclass(frozen=True, slots=True)
class Target:
    """value: mean size of the error. interval: its 95 % interval. target: the limit. noise: the machine's own; nan if it was not measured.
    why: the reason where nothing can be told."""

    name: str
    value: float
    interval: Interval
    target: float
    noise: float
    answer: Answer
    why: str = ""

    @property
    def words(self) -> str:
        """The answer, and what it rests on."""
        within = ", within the machine's noise" if self.answer == "met" and self.value > self.target else ""
        return WORDS[self.answer] + within + (f": {self.why}" if self.why else "")


def targets(
    cases: Sequence[ValidationCase], found: Sequence[Regret], limits: Mapping[str, float], utilisation: Mapping[str, float]
) -> list[Target]:
    """The targets e2e, ttft, queue and regret. utilisation: condition -> its planned utilisation; queueing is judged at QUEUE_AT."""
    rows = [error_target(f"mean {stage.upper()} error", cases, f"{stage}_s", limits[stage]) for stage in ("e2e", "ttft")]
    busy = [case for case in cases if abs(utilisation.get(case.condition, 0.0) - QUEUE_AT) < 0.005]
    rows.append(error_target(f"mean queueing error at {QUEUE_AT * 100:.0f} % utilisation", busy, "queue_exposed_s", limits["queue"]))
    return [*rows, _regret_target(cases, found, limits["regret"])]


def error_target(name: str, cases: Sequence[ValidationCase], column: str, limit: float) -> Target:
    """Whether the mean size of the error of a column's mean, over the cases, is within the limit."""
    if not cases:
        return Target(name, math.nan, UNKNOWN, limit, math.nan, "cannot_tell", f"no condition has a utilisation of {QUEUE_AT * 100:.0f} %")
    each = [made for case in cases if not math.isnan((made := _Case.of(case, column)).error)]
    if not each:
        why = too_little(cases) or "it took no time on the machine"
        return Target(name, math.nan, UNKNOWN, limit, math.nan, "cannot_tell", why)
    value, noises = float(np.mean([abs(case.error) for case in each])), [case.noise for case in each if not math.isnan(case.noise)]
    own = float(np.mean(noises)) if noises else math.nan
    if why := too_little(cases):
        return Target(name, value, UNKNOWN, limit, own, "cannot_tell", why)
    draws = np.nanmean([np.abs(case.draws()) for case in each], axis=0)
    low, high = np.nanquantile(draws, (0.025, 0.975))
    between = Interval(min(float(low), value), max(float(high), value))
    allowed = max(limit, own)
    answer: Answer = "met" if between.high <= allowed else "not_met" if between.low > allowed else "cannot_tell"
    why = "" if answer != "cannot_tell" else f"the interval of the error holds the limit of {max(limit, own):.1%}".replace("%", " %")
    return Target(name, value, between, limit, own, answer, why)


def too_little(cases: Sequence[ValidationCase]) -> str:
    """Why cases have too few runs or requests to judge them; empty if they have enough."""
    repeats = min(len(case.measured) for case in cases)
    if repeats < 2:
        return "one repeat does not show the machine's noise; give repeats=3"
    least = min(int((rows.outcome == "completed").sum()) for case in cases for rows in case.measured)
    return f"{least} requests of a run completed; at least {LEAST_REQUESTS} are needed" if least < LEAST_REQUESTS else ""


@dataclass(frozen=True, slots=True)
class _Case:
    """measured: [repeats, requests], predicted: [requests]; nan where a request did not complete in that run."""

    measured: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, case: ValidationCase, column: str) -> _Case:
        told = case.predicted[case.predicted.outcome == "completed"].set_index("request_id")[column]
        runs = [rows[rows.outcome == "completed"].set_index("request_id")[column].reindex(told.index) for rows in case.measured]
        return cls(np.array([run.to_numpy(float) for run in runs]), told.to_numpy(float))

    @property
    def error(self) -> float:
        measured = float(np.mean(np.nanmean(self.measured, axis=1)))
        return float(np.nanmean(self.predicted)) / measured - 1 if measured > 1e-9 else math.nan

    @property
    def noise(self) -> float:
        return noise(np.nanmean(self.measured, axis=1))

    def draws(self) -> np.ndarray:
        """The error in each resample of stretches of requests and of repeats."""
        places = intervals.paired_draws(len(self.predicted))
        of_repeats = np.array([np.nanmean(run[places], axis=1) for run in self.measured])  # [repeats, draws]
        chosen = np.random.default_rng(1).integers(0, len(of_repeats), of_repeats.T.shape)
        measured = np.take_along_axis(of_repeats.T, chosen, 1).mean(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(measured > 1e-9, np.nanmean(self.predicted[places], axis=1) / measured - 1, np.nan)


def _regret_target(cases: Sequence[ValidationCase], found: Sequence[Regret], limit: float) -> Target:
    worst = max((1.0 if r.violates else r.counted for r in found), default=math.nan)
    low = max(
        (r.goodput_interval.low for r in found if r.goodput_interval is not UNKNOWN and r.simulated_pick != r.hardware_best), default=0.0
    )
    why = too_little(cases)
    if why or math.isnan(worst):
        return Target("largest regret", worst, UNKNOWN, limit, math.nan, "cannot_tell", why or "no policy keeps the distortion limits")
    answer: Answer = "met" if worst <= limit else "not_met" if low > limit or any(r.violates for r in found) else "cannot_tell"
    return Target(
        "largest regret", worst, UNKNOWN, limit, math.nan, answer, "" if answer != "cannot_tell" else "the interval holds the limit"
    )

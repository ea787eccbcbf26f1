"""The knee of a policy: the highest rate at which it meets the goal, on each part of the workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from experiments.capacity.bisection import Bracket, bisection
from experiments.capacity.goal import Goal
from experiments.capacity.parts import Part, run_part
from experiments.lib.intervals import UNKNOWN, Interval
from experiments.sweeps.chains import Chain, Task

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Search:
    """One search. runs: figures of each run with its `rate_per_s`, in the order in which they were made."""

    bracket: Bracket
    runs: tuple[Figures, ...]

    def at_knee(self) -> Figures:
        """The run at the highest rate that meets the goal; the first run where there is none."""
        return next((run for run in self.runs if run["rate_per_s"] == self.bracket.holds), self.runs[0])


@dataclass(frozen=True, slots=True)
class Knee:
    """The searches of one policy, one for each part of the workload, in the same order for all policies."""

    policy: str
    searches: tuple[Search, ...]
    goal: Goal

    @property
    def rates_per_s(self) -> tuple[float, ...]:
        return tuple(search.bracket.holds for search in self.searches)

    @property
    def found(self) -> bool:
        return all(search.bracket.found for search in self.searches)

    @property
    def rate_per_s(self) -> float:
        return fmean(self.rates_per_s)

    @property
    def interval(self) -> Interval:
        return student(self.rates_per_s)

    def figure(self, name: str) -> float:
        """The mean of a figure over the runs at the knee."""
        return fmean(float(search.at_knee()[name]) for search in self.searches)

    def reason(self) -> str:
        """Why there is no knee; empty if there is one."""
        for search in self.searches:
            if search.bracket.holds == 0:
                last = min(search.runs, key=lambda run: run["rate_per_s"])
                return f"{self.goal.missed(last)}, even at {last['rate_per_s']:.2g} requests/s"
        if not self.found:
            return f"meets the goal at every rate tried, up to {max(self.rates_per_s):.3g} requests/s"
        return ""


def search_chain(config: Mapping[str, Any], part: Part, start_per_s: float, goal: Goal, tolerance: float) -> Chain[Search]:
    """Search for the knee on one part of the workload. config: plain configuration of the simulation, with the policy."""
    search, runs = bisection(start_per_s, tolerance), []
    rate_per_s = next(search)
    while True:
        figures = yield Task(run_part, {"config": config, "part": part, "rate_per_s": rate_per_s})
        runs.append({"rate_per_s": rate_per_s, **figures})
        try:
            rate_per_s = search.send(not goal.missed(figures))
        except StopIteration as end:
            return Search(end.value, tuple(runs))


def student(values: Sequence[float]) -> Interval:
    """95 % interval of the mean of a few independent values, by Student's t: a bootstrap of so few is too narrow."""
    if len(values) < 2:
        return UNKNOWN
    mean, half = fmean(values), float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean - half, mean + half)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, Interval]:
    """(mean ratio - 1, its 95 % interval) of values that belong together in pairs, by the logarithms of the pairs' ratios."""
    logs = np.log(np.asarray(ours) / np.asarray(theirs))
    interval = student(logs.tolist())
    return float(np.expm1(logs.mean())), Interval(float(np.expm1(interval.low)), float(np.expm1(interval.high)))

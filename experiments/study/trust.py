"""Whether the simulator can be trusted: its errors beside the machine's own noise, and whether it picks the same policy.

Agreement counts only pairs of policies that the machine tells apart. Following the simulator costs nothing where the machine cannot tell
its pick from the best policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.report.words import percent
from experiments.study.decision import Decision, Measured
from experiments.study.ranking import rank


@dataclass(frozen=True, slots=True)
class Trust:
    """Trust in the simulator.

    Parameters
    ----------
    ttft_error, e2e_error : mean over the policies of the size of the relative error of mean TTFT and mean E2E.
    ttft_noise, e2e_noise : the same of one repeat against the mean of the others; nan with one repeat.
    pick : the policy that the simulator picked before the machine ran.
    same : whether the machine's best policies contain the pick; None where the machine cannot tell any policies apart.
    pairs, agreed : pairs of policies that the machine tells apart, and those of them that the simulator orders the same way.
    regret : goodput lost by following the pick, as a share; 0 where the machine cannot tell it from the best.
    """

    ttft_error: float
    ttft_noise: float
    e2e_error: float
    e2e_noise: float
    pick: str | None
    same: bool | None
    pairs: int
    agreed: int
    regret: float

    def sentence(self) -> str:
        """All of it in one line."""
        errors = (
            f"The simulator's errors are {percent(self.ttft_error)} on mean TTFT (the machine's own noise: {percent(self.ttft_noise)}) "
            f"and {percent(self.e2e_error)} on mean E2E ({percent(self.e2e_noise)})"
        )
        if self.pick is None:
            return f"{errors}; it picked no policy."
        if self.same is None:
            return f"{errors}; it picked {self.pick}, which the machine can neither confirm nor deny."
        ordered = f"it orders {self.agreed} of the {self.pairs} pairs that the machine tells apart the same way"
        if self.same:
            return f"{errors}; its pick, {self.pick}, is among the machine's best, and {ordered}."
        return f"{errors}; its pick, {self.pick}, would cost {percent(self.regret)} of goodput here, and {ordered}."


def trust(
    predicted: Mapping[str, Mapping[str, Any]], repeats: Mapping[str, Sequence[Mapping[str, Any]]], measured: Sequence[Measured],
    decision: Decision, max_distortion: float,
) -> Trust:  # fmt: skip
    """The trust in the simulator.

    Parameters
    ----------
    predicted : policy -> summary of the simulated run.
    repeats : policy -> summaries of its real runs.
    measured, decision : the real runs of each policy, and what they tell apart.
    max_distortion : the limit that the simulator's pick keeps.
    """
    pick = rank(predicted, max_distortion).pick
    told = [pair for pair in decision.pairs if pair.winner]
    agreed = sum(_first(predicted, pair.a, pair.b) == pair.winner for pair in told)
    by_name = {m.policy: m for m in measured}
    best = max(by_name[name].share for name in decision.best) if decision.best else math.nan
    same = None if not told or pick is None else pick in decision.best
    lost = 0.0 if same is not False or pick is None or not best > 0 else max(0.0, 1 - by_name[pick].share / best)
    ttft_error, ttft_noise = _errors(predicted, repeats, "ttft_s")
    e2e_error, e2e_noise = _errors(predicted, repeats, "e2e_s")
    return Trust(ttft_error, ttft_noise, e2e_error, e2e_noise, pick, same, len(told), agreed, lost)


def _first(predicted: Mapping[str, Mapping[str, Any]], a: str, b: str) -> str:
    """Which of two policies the simulator prefers, by the same rule as `rank`."""
    return rank({name: predicted[name] for name in (a, b)}, math.inf).ranking[0].policy


def _errors(
    predicted: Mapping[str, Mapping[str, Any]], repeats: Mapping[str, Sequence[Mapping[str, Any]]], name: str
) -> tuple[float, float]:
    from experiments.validation.scores import noise

    errors, noises = [], []
    for policy, summaries in repeats.items():
        measured = np.array([math.nan if s[name]["mean"] is None else s[name]["mean"] for s in summaries], float)
        said = predicted[policy][name]["mean"]
        if said is not None and np.nanmean(measured) > 0:
            errors.append(abs(said / float(np.nanmean(measured)) - 1))
            noises.append(noise(measured))
    return (float(np.mean(errors)), float(np.mean(noises))) if errors else (math.nan, math.nan)

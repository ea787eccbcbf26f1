"""How long the prompts of a calibration may be, and how long it takes, judged by its first few prompts.

A model that computes a thousand times as slowly as another cannot be measured at the same lengths in the same time. So a few short prompts
are served first. What they take says which lengths fit the time, when prompts arrive, and how long a silence is normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from abkt.profile.schema import Fit, fit
from abkt.records import RequestRecord

SHORTEST = 64  # tokens
FIRST = (64, 128, 256, 512, 1024)  # lengths of the first prompts; the longer ones only if they are quick
FIRST_S = 10.0  # a first prompt is sent if it takes no longer than this
COUNTS = (14, 10, 7)  # number of lengths: the most that fit the time
LEAST_LONGEST = 512  # the longest prompt is no shorter than this, however slow the model
SHRINK = 0.8
LOAD = 0.7  # share of the time that prefill computes in the spaced runs
OSL, BURST_OSL = 24, 32  # output tokens of a request in the spaced runs and in the burst
LEAST_STALL_S = 60.0
STALLS = 10  # a silence is too long after this many times the longest prompt's time


@dataclass(frozen=True, slots=True)
class Speed:
    """What the first prompts took. prompt: seconds of prefill and encoding by tokens. iteration_s: median of the decode iterations."""

    prompt: Fit
    iteration_s: float

    @classmethod
    def of(cls, requests: Sequence[RequestRecord], iterations: Sequence[tuple[int, int, float]]) -> Speed:
        samples = [({"tokens": float(r.isl)}, max(r.prefill_busy_s + r.encode_busy_s, 1e-9)) for r in requests]
        features = ("tokens", "tokens*tokens") if len({r.isl for r in requests}) > 1 else ("tokens",)
        return cls(fit(features, samples), median([seconds for _, _, seconds in iterations] or [0.0]))

    def prompt_s(self, tokens: float) -> float:
        return self.prompt.seconds(tokens=tokens)


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """lengths: of the prompts of a spaced run. burst: of those that arrive together. runs: number of spaced runs. seconds: about how long
    all runs take. stall_s: the silence after which a worker is taken for dead."""

    lengths: tuple[int, ...]
    burst: tuple[int, ...]
    runs: int
    seconds: float
    stall_s: float

    @property
    def words(self) -> str:
        time = f"{self.seconds / 60:.0f} minutes" if self.seconds >= 90 else f"{max(10, round(self.seconds, -1)):.0f} s"
        prompts = f"{len(self.lengths)} prompts of {min(self.lengths)} to {max(self.lengths)} tokens"
        return f"{self.runs} runs of {prompts} and a burst; about {time}"


def plan(speed: Speed, runs: int, max_batch: int, longest: int, budget_s: float) -> CalibrationPlan:
    """The longest prompts, up to `longest`, and the most lengths that fit the time. A model that is too slow for it gets short prompts, and
    takes longer."""
    least = min(LEAST_LONGEST, longest)
    bound = longest
    while True:
        for count in COUNTS:
            found = _plan(speed, runs, max_batch, bound, count)
            if found.seconds <= budget_s:
                return found
        if bound == least:
            return found
        bound = max(least, int(bound * SHRINK))


def _plan(speed: Speed, runs: int, max_batch: int, longest: int, count: int) -> CalibrationPlan:
    lengths = tuple(int(n) for n in np.geomspace(SHORTEST, longest, count))
    burst = tuple(int(n) for n in np.geomspace(SHORTEST, longest // 2, 2 * max_batch))
    spaced_s = sum(map(speed.prompt_s, lengths)) / LOAD + OSL * speed.iteration_s
    burst_s = sum(map(speed.prompt_s, burst)) + 2 * BURST_OSL * speed.iteration_s
    stall_s = max(LEAST_STALL_S, STALLS * speed.prompt_s(longest))
    return CalibrationPlan(lengths, burst, runs, runs * spaced_s + burst_s, stall_s)


def arrivals(lengths: Sequence[int], speed: Speed) -> list[tuple[int, int, float]]:
    """(isl, osl, arrival_s) of prompts of these lengths, spaced so that prefill is LOAD busy.

    Under load a pass shares its core with the sending of the prompt before it, as it will when requests are served.
    """
    at_s = np.cumsum([0.0, *(speed.prompt_s(isl) / LOAD for isl in lengths)]).tolist()
    return [(isl, OSL, arrival_s) for isl, arrival_s in zip(lengths, at_s, strict=False)]

"""Who meets whom, and that all of them keep the same bounds: mean distortion at most D, p99 at most 8 D.

D is what a fixed rate leaves. A policy that adapts is told D; of one that knows only levels, the coarsest that break the bounds are taken
away. Equal p99 would forbid adapting at all, and without bounds the lowest rate would win every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.adaptation.scores import p99
from experiments.study.ranking import TAIL

STEPS = 7  # of a bisection
Bitrate = dict[str, Any]  # a policy's configuration, as abkt.policy.build takes it


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of token-weighted distortion over all requests."""

    mean: float

    @property
    def p99(self) -> float:
        return TAIL * self.mean

    def held_by(self, distortion: Sequence[float]) -> bool:
        return bool(np.mean(distortion) <= self.mean * (1 + 1e-9) and p99(np.asarray(distortion)) <= self.p99)


def allocated(bits: float, order: str = "slope") -> Bitrate:
    return {"_target_": "abkt.policy.bitrate.allocated.Allocated", "bits": bits, "order": order}


@dataclass(frozen=True, slots=True)
class Aim:
    """In D. asked: as good as this at the start, where there is time. behind: gone on to while the request is decoded; inf: nothing is."""

    asked: float
    behind: float

    def __post_init__(self) -> None:
        if not (0 < self.asked <= 1 and self.behind > 0):
            raise ValueError(f"asked is {self.asked} and behind {self.behind}, in D; asked must be above 0 and at most 1, behind above 0")


def told(bitrate: Mapping[str, Any], bounds: Bounds, aim: Aim) -> Bitrate:
    """An adaptive policy with these bounds and this aim; one that cannot refine does not."""
    distortions = {"target_distortion": aim.asked * bounds.mean, "mean_distortion": bounds.mean, "max_distortion": bounds.p99}
    if missing := sorted(distortions.keys() - bitrate.keys()):
        raise ValueError(f"policy {bitrate.get('_target_')} has no {missing[0]}; only policies that can be told bounds adapt within them")
    if "refine_distortion" in bitrate:
        distortions["refine_distortion"] = aim.behind * bounds.mean
    return {**bitrate, **distortions}


def coarsest_within(bounds: Bounds, levels: Sequence[float], distortion: Callable[[float], Sequence[float]]) -> float | None:
    """The fewest bits of the levels whose distortion (of each request) keeps the bounds; None if none does."""
    return next((bits for bits in sorted(levels) if bounds.held_by(distortion(bits))), None)


def finest_levels_within(bounds: Bounds, levels: Sequence[float], distortion: Callable[[list[int]], Sequence[float]]) -> list[int]:
    """All the levels, finest first, less the coarsest as long as whoever may use them breaks the bounds; empty if the finest alone does."""
    left = [int(level) for level in sorted(levels, reverse=True)]
    while left and not bounds.held_by(distortion(left)):
        left.pop()
    return left


def finest_asked(mean: float, most: float, distortion: Callable[[float], float]) -> float | None:
    """The largest share of `most` at which, being asked for, the mean distortion is no more than `mean`; looked for down to a quarter."""
    if distortion(most) <= mean:
        return most
    low, high = most / 4, most
    if distortion(low) > mean:
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if distortion(middle) <= mean else (low, middle)
    return low

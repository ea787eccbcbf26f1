"""The rivals of a comparison, all set to keep the same bounds: mean distortion at most D, p99 at most 8 D.

D is the mean distortion that a fixed rate leaves. An adaptive policy gets D as its limit. A policy with a list of levels loses its coarsest
ones until it keeps the bounds. Equal p99 would forbid adapting at all, and without bounds the lowest rate would win every figure.

Every policy may use the same coders. A policy that does not estimate the link cannot choose one for each transfer, so it gets the one that
serves it best on these very requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from abkt.ranges import bound
from experiments.adaptation.scores import p99
from experiments.study.ranking import TAIL

STEPS = 7  # steps of the bisection
SHIPPED_CODERS = ("fixed", "entropy", "klt")  # coders among which our policies choose by themselves, where they are offered
Bitrate = dict[str, Any]  # a policy's configuration, as abkt.policy.build takes it


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of token-weighted distortion over all requests. mean: D, the limit of the mean."""

    mean: float

    @property
    def p99(self) -> float:
        return TAIL * self.mean

    def held_by(self, distortion: Sequence[float]) -> bool:
        return bool(np.mean(distortion) <= self.mean * (1 + 1e-9) and p99(np.asarray(distortion)) <= self.p99)


def allocated(bits: float, order: str = "slope") -> Bitrate:
    return {"_target_": "abkt.policy.bitrate.allocated.Allocated", "bits": bits, "order": order}


def equal(distortion: float, refine_distortion: float = math.inf) -> Bitrate:
    return {"_target_": "abkt.policy.bitrate.equal.Equal", "distortion": distortion, "refine_distortion": refine_distortion}


def coded(bitrate: Mapping[str, Any], coders: Sequence[str], link: Any = None) -> Bitrate:
    """A policy that chooses among these coders. link: the true capacity of the link, for a bound."""
    made = {"_target_": "abkt.policy.bitrate.coded.Coded", "inner": dict(bitrate), "coders": list(coders)}
    return {**made, "link": link} if link is not None else made


def one_coder_each(bitrate: Mapping[str, Any], coders: Sequence[str]) -> list[Bitrate]:
    return [coded(bitrate, [coder]) for coder in coders]


def as_shipped(bitrate: Mapping[str, Any], coders: Sequence[str]) -> Bitrate:
    """A policy of ours with these coders. With those that it ships with, klt being offered or not, it is left as it is."""
    return dict(bitrate) if tuple(coders) in (SHIPPED_CODERS, SHIPPED_CODERS[:2]) else coded(bitrate, coders)


def with_bits(coders: Sequence[str]) -> list[str]:
    """The coders whose bits per value say how many bytes they send: all but klt, or klt if it is the only one."""
    return [coder for coder in coders if coder != "klt"] or list(coders)


@dataclass(frozen=True, slots=True)
class Aim:
    """Distortions that a policy aims for, in units of D. target: distortion at the start of decoding, if there is time. refine: distortion
    after refinement during decoding; inf: no refinement."""

    target: float
    refine: float

    def __post_init__(self) -> None:
        bound(self, "target", above=0, most=1)
        bound(self, "refine", above=0, infinite=True)


def with_bounds(bitrate: Mapping[str, Any], bounds: Bounds, aim: Aim) -> Bitrate:
    """The configuration of an adaptive policy with these bounds and this aim. Raises ValueError for a policy that takes no bounds."""
    distortions = {"target_distortion": aim.target * bounds.mean, "mean_distortion": bounds.mean, "max_distortion": bounds.p99}
    if missing := sorted(distortions.keys() - bitrate.keys()):
        raise ValueError(f"policy {bitrate.get('_target_')} has no {missing[0]}, so it cannot be held to bounds of distortion")
    if "refine_distortion" in bitrate:
        distortions["refine_distortion"] = aim.refine * bounds.mean
    return {**bitrate, **distortions}


def bounded(bitrate: Mapping[str, Any], bounds: Bounds, aim: Aim, order: str = "uniform", refine: bool = False) -> Bitrate:
    """A published rule within the bounds. order, refine: whether it also gets the stream and the refinement of ours."""
    made = {"_target_": "abkt.policy.bitrate.bounded.Bounded", "inner": dict(bitrate), "order": order}
    limits = {"target_distortion": aim.target * bounds.mean, "mean_distortion": bounds.mean, "max_distortion": bounds.p99}
    return {**made, **limits, "refine_distortion": aim.refine * bounds.mean if refine else math.inf}


def coarsest_within(bounds: Bounds, levels: Sequence[float], distortion: Callable[[float], Sequence[float]]) -> float | None:
    """The fewest bits that keep the bounds; None if no level does. distortion: bits -> distortion of each request."""
    return next((bits for bits in sorted(levels) if bounds.held_by(distortion(bits))), None)


def finest_levels_within(bounds: Bounds, levels: Sequence[float], distortion: Callable[[list[int]], Sequence[float]]) -> list[int]:
    """The levels, finest first, without the coarsest ones that break the bounds; empty if even the finest alone does."""
    left = [int(level) for level in sorted(levels, reverse=True)]
    while left and not bounds.held_by(distortion(left)):
        left.pop()
    return left


def largest_within(bounds: Bounds, distortion: Callable[[float], Sequence[float]]) -> float | None:
    """The largest distortion from D to 8 D that a policy may aim for within the bounds; None if not even D keeps them.

    distortion: aim -> distortion of each request; it must rise with the aim.
    """
    low, high = bounds.mean, bounds.p99
    if not bounds.held_by(distortion(low)):
        return None
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if bounds.held_by(distortion(middle)) else (low, middle)
    return low


def largest_aim(mean: float, most: float, distortion: Callable[[float], float]) -> float | None:
    """The largest aim between most / 4 and `most` that gives a mean distortion of at most `mean`; None if there is none.

    distortion: aim -> mean distortion; it must rise with the aim.
    """
    if distortion(most) <= mean:
        return most
    low, high = most / 4, most
    if distortion(low) > mean:
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if distortion(middle) <= mean else (low, middle)
    return low

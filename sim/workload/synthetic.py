"""Synthetic requests: arrival processes of a given mean rate, and lengths around a mean.

Sources: renewal processes with Gamma and Weibull gaps, as BurstGPT (arXiv 2401.17644) and ServeGen (arXiv 2505.09999) fit them to real
traffic; OnOff is Kuczura's interrupted Poisson process (1973).
Not modelled: rates that follow the time of day; lengths that depend on each other or on the arrival.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from abkt.ranges import bound
from sim.workload.requests import Request

LOWEST_SHAPE, HIGHEST_SHAPE = 0.02, 1e3


class Arrivals(Protocol):
    def times_s(self, requests: int, rate_per_s: float, random: np.random.Generator) -> np.ndarray:
        """Arrival times of `requests` requests, sorted, the first at 0 s, with a mean rate of rate_per_s."""
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Arrivals that are independent of each other: exponential gaps."""

    def times_s(self, requests: int, rate_per_s: float, random: np.random.Generator) -> np.ndarray:
        return _times_s(random.exponential(1.0, requests), rate_per_s)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma gaps with coefficient of variation cv. Above 1, requests come in bursts; below 1, more evenly than Poisson."""

    cv: float

    def __post_init__(self) -> None:
        bound(self, "cv", above=0)

    def times_s(self, requests: int, rate_per_s: float, random: np.random.Generator) -> np.ndarray:
        return _times_s(gamma_gaps(1 / self.cv**2, requests, random), rate_per_s)


@dataclass(frozen=True, slots=True)
class Weibull:
    """Weibull gaps with coefficient of variation cv. Above 1, the tail is longer than that of Gamma gaps."""

    cv: float

    def __post_init__(self) -> None:
        bound(self, "cv", above=0)
        weibull_shape(self.cv)

    def times_s(self, requests: int, rate_per_s: float, random: np.random.Generator) -> np.ndarray:
        return _times_s(weibull_gaps(weibull_shape(self.cv), requests, random), rate_per_s)


@dataclass(frozen=True, slots=True)
class OnOff:
    """A Poisson process that pauses. The times on and off are exponential with these means. The mean rate includes the pauses."""

    on_s: float
    off_s: float

    def __post_init__(self) -> None:
        bound(self, "on_s", "off_s", above=0)

    def times_s(self, requests: int, rate_per_s: float, random: np.random.Generator) -> np.ndarray:
        busy_s = _times_s(random.exponential(1.0, requests), rate_per_s * (self.on_s + self.off_s) / self.on_s)
        ends_s, pauses_s = [0.0], [0.0]  # ends of the on times, not counting pauses; sum of all earlier pauses
        while ends_s[-1] <= busy_s[-1]:
            ends_s.append(ends_s[-1] + random.exponential(self.on_s))
            pauses_s.append(pauses_s[-1] + random.exponential(self.off_s))
        return busy_s + np.array(pauses_s)[np.searchsorted(ends_s, busy_s, side="right") - 1]


def synthetic(
    requests: int, rate_per_s: float, isl: int, osl: int, variation: float = 0.0, seed: int = 0, arrivals: Arrivals | None = None
) -> list[Request]:
    """Synthetic requests, the first at 0 s. isl, osl: mean lengths. variation: standard deviation / mean of both (gamma); 0: all equal."""
    if requests < 1 or not 0 < rate_per_s < math.inf or min(isl, osl) < 1 or variation < 0:
        raise ValueError("a synthetic workload needs requests, isl and osl of at least 1, a rate above 0 and a variation of at least 0")
    random = np.random.default_rng(seed)
    times_s = (arrivals or Poisson()).times_s(requests, rate_per_s, random)
    lengths = []
    for mean in (isl, osl):
        drawn = random.gamma(1 / variation**2, mean * variation**2, requests) if variation > 0 else np.full(requests, float(mean))
        lengths.append(np.maximum(1, np.rint(drawn)).astype(int))
    return [Request(i, a, p, o) for i, (a, p, o) in enumerate(zip(times_s.tolist(), *(drawn.tolist() for drawn in lengths)))]


def gamma_gaps(shape: float, count: int, random: np.random.Generator) -> np.ndarray:
    """Gaps of mean 1."""
    return random.gamma(shape, 1 / shape, count)


def weibull_gaps(shape: float, count: int, random: np.random.Generator) -> np.ndarray:
    """Gaps of mean 1."""
    return random.weibull(shape, count) / math.gamma(1 + 1 / shape)


def weibull_shape(cv: float) -> float:
    """The shape k of a Weibull distribution with this coefficient of variation: cv^2 + 1 = Γ(1 + 2/k) / Γ(1 + 1/k)^2, by bisection."""
    target, low, high = math.log1p(cv**2), LOWEST_SHAPE, HIGHEST_SHAPE

    def spread(shape: float) -> float:
        return math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)

    if not spread(high) <= target <= spread(low):
        raise ValueError(f"Weibull arrivals: cv is {cv:g}; it must lie between 0.0013 and 10^14")
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spread(middle) > target else (low, middle)
    return low


def _times_s(gaps: np.ndarray, rate_per_s: float) -> np.ndarray:
    times = np.cumsum(gaps) / rate_per_s
    return times - times[0]

"""Made-up requests: arrival processes of a given mean rate, and lengths about a mean.

Sources: renewal processes with Gamma and Weibull gaps as BurstGPT (arXiv 2401.17644) and ServeGen (arXiv 2505.09999) fit them to real
traffic; on and off in turn is Kuczura's interrupted Poisson process (1973).
Not modelled: rates that follow the time of day; lengths that depend on each other or on the arrival.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sim.workload.requests import Request

LOWEST_SHAPE, HIGHEST_SHAPE = 0.02, 1e3


class Arrivals(Protocol):
    def times_s(self, requests: int, rate_per_s: float, random: np.random.Generator) -> np.ndarray:
        """So many arrivals with a mean of rate_per_s, rising, the first at 0 s."""
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Requests know nothing of each other."""

    def times_s(self, requests: int, rate_per_s: float, random: np.random.Generator) -> np.ndarray:
        return _times_s(random.exponential(1.0, requests), rate_per_s)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gaps with the coefficient of variation cv: above 1 they come in bursts, below it more evenly than by chance."""

    cv: float

    def __post_init__(self) -> None:
        _positive("Gamma arrivals: cv", self.cv)

    def times_s(self, requests: int, rate_per_s: float, random: np.random.Generator) -> np.ndarray:
        return _times_s(gamma_gaps(1 / self.cv**2, requests, random), rate_per_s)


@dataclass(frozen=True, slots=True)
class Weibull:
    """As Gamma, with a longer tail of gaps where cv is above 1."""

    cv: float

    def __post_init__(self) -> None:
        weibull_shape(self.cv)

    def times_s(self, requests: int, rate_per_s: float, random: np.random.Generator) -> np.ndarray:
        return _times_s(weibull_gaps(weibull_shape(self.cv), requests, random), rate_per_s)


@dataclass(frozen=True, slots=True)
class OnOff:
    """A Poisson process that pauses: on and off for exponential times of these means. The mean rate is over both."""

    on_s: float
    off_s: float

    def __post_init__(self) -> None:
        _positive("on-off arrivals: on_s", self.on_s)
        _positive("on-off arrivals: off_s", self.off_s)

    def times_s(self, requests: int, rate_per_s: float, random: np.random.Generator) -> np.ndarray:
        busy_s = _times_s(random.exponential(1.0, requests), rate_per_s * (self.on_s + self.off_s) / self.on_s)
        ends_s, pauses_s = [0.0], [0.0]  # of the on times, counted without the pauses; and what all pauses before have taken
        while ends_s[-1] <= busy_s[-1]:
            ends_s.append(ends_s[-1] + random.exponential(self.on_s))
            pauses_s.append(pauses_s[-1] + random.exponential(self.off_s))
        return busy_s + np.array(pauses_s)[np.searchsorted(ends_s, busy_s, side="right") - 1]


def synthetic(
    requests: int, rate_per_s: float, isl: int, osl: int, variation: float = 0.0, seed: int = 0, arrivals: Arrivals | None = None
) -> list[Request]:
    """Requests of a made-up workload, the first at 0 s. variation: of both lengths, standard deviation by mean (gamma); 0: all equal."""
    if requests < 1 or not 0 < rate_per_s < math.inf or min(isl, osl) < 1 or variation < 0:
        raise ValueError("a synthetic workload needs requests, isl and osl of at least 1, a rate above 0 and a variation not below 0")
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
    _positive("Weibull arrivals: cv", cv)
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


def _positive(what: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{what} is {value}; it must be above 0")

"""95 % intervals of the difference between two runs of the same requests, by a paired block bootstrap.

Requests that follow each other share queues, so they are not independent. Whole stretches of them are drawn (circular block bootstrap,
Politis and Romano 1992; a block has the cube root of their number), each request together with its partner in the other run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
DRAWS = 1000
LEVEL = 0.95
VALUES = 20_000_000  # most values that are drawn; with more requests there are fewer draws, but never fewer than LEAST
LEAST = 100  # least number of draws


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


UNKNOWN = Interval(math.nan, math.nan)


def paired_draws(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """[draws, count] indices: each row is a resample of `count` requests in blocks of consecutive ones."""
    draws = max(LEAST, min(DRAWS, VALUES // max(1, count)))
    block = max(1, round(count ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(0, count, (draws, -(-count // block)))
    places = (starts[:, :, None] + np.arange(block)) % count
    return places.reshape(draws, -1)[:, :count]


def difference(a: Floats, b: Floats, statistic: Callable[..., Floats], places: npt.NDArray[np.int64]) -> Interval:
    """Interval of statistic(b) - statistic(a). Pairs with a nan are left out. statistic takes axis=1 and skips nan."""
    gone = np.isnan(a) | np.isnan(b)
    a, b = np.where(gone, np.nan, a), np.where(gone, np.nan, b)
    if gone.all():
        return UNKNOWN
    return _percentiles(statistic(b[places], axis=1) - statistic(a[places], axis=1))


def relative(a: Floats, b: Floats, statistic: Callable[..., Floats], places: npt.NDArray[np.int64]) -> Interval:
    """Interval of statistic(b) / statistic(a) - 1; nan where statistic(a) is 0."""
    gone = np.isnan(a) | np.isnan(b)
    a, b = np.where(gone, np.nan, a), np.where(gone, np.nan, b)
    if gone.all() or not statistic(a[None], axis=1)[0] > 1e-9:
        return UNKNOWN
    bottom = statistic(a[places], axis=1)
    return _percentiles((statistic(b[places], axis=1) - bottom) / np.where(bottom > 1e-9, bottom, np.nan))


def mean(values: Sequence[float] | Floats, seed: int = 0) -> Interval:
    """Interval of the mean of independent values, such as repeats."""
    array = np.asarray(values, float)
    if len(array) < 2:
        return UNKNOWN
    places = np.random.default_rng(seed).integers(0, len(array), (DRAWS, len(array)))
    return _percentiles(array[places].mean(1))


def p99(values: Floats, axis: int) -> Floats:
    return np.asarray(np.nanquantile(values, 0.99, axis=axis))


def _percentiles(values: Floats) -> Interval:
    if np.isnan(values).all():
        return UNKNOWN
    low, high = np.nanquantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(low), float(high))

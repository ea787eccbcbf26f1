"""95 % intervals of what two runs of the same requests differ by, from the pairs alone.

Requests that follow each other share queues, so they are no independent draws: whole stretches of them are drawn (circular block
bootstrap, Politis and Romano 1992; blocks of the cube root of their number), each request with its partner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
DRAWS = 1000
LEVEL = 0.95
VALUES = 20_000_000  # that are drawn at most, whatever the number of requests: then there are fewer draws, but never below LEAST
LEAST = 100


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def paired_draws(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """[draws, count] places: each row a resample of `count` consecutive requests, by blocks."""
    draws = max(LEAST, min(DRAWS, VALUES // max(1, count)))
    block = max(1, round(count ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(0, count, (draws, -(-count // block)))
    places = (starts[:, :, None] + np.arange(block)) % count
    return places.reshape(draws, -1)[:, :count]


def difference(a: Floats, b: Floats, statistic: Callable[..., Floats], places: npt.NDArray[np.int64]) -> Interval:
    """Of statistic(b) - statistic(a), pairs where either is nan left out of both. statistic takes axis=1 and skips nan."""
    gone = np.isnan(a) | np.isnan(b)
    a, b = np.where(gone, np.nan, a), np.where(gone, np.nan, b)
    if gone.all():
        return Interval(np.nan, np.nan)
    return _percentiles(statistic(b[places], axis=1) - statistic(a[places], axis=1))


def relative(a: Floats, b: Floats, statistic: Callable[..., Floats], places: npt.NDArray[np.int64]) -> Interval:
    """Of statistic(b) / statistic(a) - 1; nan where a has nothing to be relative to."""
    gone = np.isnan(a) | np.isnan(b)
    a, b = np.where(gone, np.nan, a), np.where(gone, np.nan, b)
    if gone.all() or not statistic(a[None], axis=1)[0] > 1e-9:
        return Interval(np.nan, np.nan)
    bottom = statistic(a[places], axis=1)
    return _percentiles((statistic(b[places], axis=1) - bottom) / np.where(bottom > 1e-9, bottom, np.nan))


def mean(values: Sequence[float] | Floats, seed: int = 0) -> Interval:
    """Of the mean of values that are independent, such as repeats: by the same draws with blocks of one."""
    array = np.asarray(values, float)
    if len(array) < 2:
        return Interval(np.nan, np.nan)
    places = np.random.default_rng(seed).integers(0, len(array), (DRAWS, len(array)))
    return _percentiles(array[places].mean(1))


def p99(values: Floats, axis: int) -> Floats:
    return np.asarray(np.nanquantile(values, 0.99, axis=axis))


def _percentiles(values: Floats) -> Interval:
    if np.isnan(values).all():
        return Interval(np.nan, np.nan)
    low, high = np.nanquantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(low), float(high))

"""Estimates of a peer's wire goodput: an exponential mean and a windowed low quantile, both weighted by time.

Weights follow sending time, so cutting a sample in two changes nothing: sockets (a sample a frame) and the model (a sample per
constant rate) agree. The window is kept in `GRAINS` equal grains of sending time, each with its mean rate, so that an estimate costs
the same however many samples there were.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from abkt.policy.view import GoodputSample

GRAINS = 64


@dataclass(slots=True)
class Bandwidth:
    """initial_bytes_per_s is believed until the first sample. window_s counts sending time, not idle time."""

    initial_bytes_per_s: float
    horizon_s: float = 1.0
    window_s: float = 2.0
    low_quantile: float = 0.2
    updated_s: float = math.nan
    _mean: float = math.nan
    _grains: deque[float] = field(default_factory=lambda: deque(maxlen=GRAINS))  # rates, newest last
    _open_bytes: float = 0.0  # of the grain that is not full yet
    _open_s: float = 0.0
    _low: float = math.nan

    def __post_init__(self) -> None:
        if not (self.initial_bytes_per_s > 0 and self.horizon_s > 0 and self.window_s > 0 and 0 <= self.low_quantile <= 1):
            raise ValueError("bandwidth: initial rate, horizon and window must be above 0, low_quantile in [0, 1]")

    def update(self, now_s: float, sample: GoodputSample) -> None:
        if sample.duration_s <= 0 or sample.wire_bytes <= 0:
            return
        rate = sample.wire_bytes / sample.duration_s
        keep = math.exp(-sample.duration_s / self.horizon_s)
        self._mean = rate if math.isnan(self._mean) else keep * self._mean + (1 - keep) * rate
        self._fill(rate, sample.duration_s)
        self._low = math.nan
        self.updated_s = now_s

    def mean_bytes_per_s(self) -> float:
        return self.initial_bytes_per_s if math.isnan(self._mean) else self._mean

    def low_bytes_per_s(self) -> float:
        """The rate below which the link was for `low_quantile` of its recent sending time, and never above the mean."""
        if math.isnan(self._mean):
            return self.initial_bytes_per_s
        if math.isnan(self._low):
            self._low = min(self._quantile(), self._mean)
        return self._low

    def _fill(self, rate: float, seconds: float) -> None:
        grain_s = self.window_s / GRAINS
        if seconds > 2 * self.window_s:  # a window and a grain of it drive out all that is older, so whole grains may be skipped
            seconds = self.window_s + grain_s + math.fmod(seconds, grain_s)
        while self._open_s + seconds >= grain_s:
            taken_s = grain_s - self._open_s
            self._grains.append((self._open_bytes + rate * taken_s) / grain_s)
            self._open_bytes = self._open_s = 0.0
            seconds -= taken_s
        self._open_bytes += rate * seconds
        self._open_s += seconds

    def _quantile(self) -> float:
        grain_s = self.window_s / GRAINS
        parts = [(rate, grain_s) for rate in self._grains]
        if self._open_s > 0:
            parts.append((self._open_bytes / self._open_s, self._open_s))
        parts.sort()
        enough_s, passed_s = self.low_quantile * sum(seconds for _, seconds in parts), 0.0
        for rate, seconds in parts:
            passed_s += seconds
            if passed_s >= enough_s:
                return rate
        return parts[-1][0]

"""Estimates of a peer's wire goodput: an exponential mean and a windowed low quantile, both weighted by time.

Weights follow sending time, so cutting a sample in two changes nothing: sockets (a sample a frame) and the model (a sample per
constant rate) agree.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from abkt.policy.view import GoodputSample


@dataclass(slots=True)
class Bandwidth:
    """initial_bytes_per_s is believed until the first sample. window_s counts sending time, not idle time."""

    initial_bytes_per_s: float
    horizon_s: float = 1.0
    window_s: float = 2.0
    low_quantile: float = 0.2
    updated_s: float = math.nan
    _mean: float = math.nan
    _recent: deque[tuple[float, float]] = field(default_factory=deque)  # (rate, sending seconds), newest last
    _recent_s: float = 0.0

    def __post_init__(self) -> None:
        if not (self.initial_bytes_per_s > 0 and self.horizon_s > 0 and self.window_s > 0 and 0 <= self.low_quantile <= 1):
            raise ValueError("bandwidth: initial rate, horizon and window must be above 0, low_quantile in [0, 1]")

    def update(self, now_s: float, sample: GoodputSample) -> None:
        if sample.duration_s <= 0 or sample.wire_bytes <= 0:
            return
        rate = sample.wire_bytes / sample.duration_s
        keep = math.exp(-sample.duration_s / self.horizon_s)
        self._mean = rate if math.isnan(self._mean) else keep * self._mean + (1 - keep) * rate
        self._recent.append((rate, sample.duration_s))
        self._recent_s += sample.duration_s
        while self._recent_s - self._recent[0][1] >= self.window_s:
            self._recent_s -= self._recent.popleft()[1]
        self.updated_s = now_s

    def mean_bytes_per_s(self) -> float:
        return self.initial_bytes_per_s if math.isnan(self._mean) else self._mean

    def low_bytes_per_s(self) -> float:
        """The rate below which the link was for `low_quantile` of its recent sending time, and never above the mean."""
        if not self._recent:
            return self.initial_bytes_per_s
        surplus_s = max(0.0, self._recent_s - self.window_s)  # the oldest sample may reach out of the window
        parts = [(rate, s - surplus_s if i == 0 else s) for i, (rate, s) in enumerate(self._recent)]
        enough_s, passed_s = self.low_quantile * (self._recent_s - surplus_s), 0.0
        low = self._mean
        for rate, seconds in sorted(parts):
            passed_s += seconds
            if passed_s >= enough_s:
                low = rate
                break
        return min(low, self._mean)

"""Estimates of a peer's wire goodput: an exponential mean and a low quantile over a window, both weighted by sending time.

Since samples are weighted by sending time, splitting a sample in two changes nothing. So real sockets (one sample per frame) and the
simulator (one sample per constant rate) give the same estimate. In the mean, a rate has weight exp(-(sending time since) / horizon_s). The
window is kept as `GRAINS` equal parts of sending time with one mean rate each, so the cost of an estimate does not depend on the number of
samples.

Age: trust in the measurement falls with the time since the last sample: trust = max(0, 1 - age_s / stale_s). The estimate moves towards the
configured rate: estimate = measured ** trust * initial ** (1 - trust). When the next sample comes, the weight of the past in the mean is
multiplied by `trust`, and the oldest share 1 - trust of the window is dropped. After stale_s without a sample, the past is forgotten.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field

from abkt.policy.view import GoodputSample
from abkt.ranges import bound

GRAINS = 64


@dataclass(slots=True)
class Bandwidth:
    """Estimates of the wire goodput to one peer.

    Parameters
    ----------
    initial_bytes_per_s : the estimate before the first sample, and again after stale_s without a sample.
    horizon_s : seconds of sending time (not idle time) over which the mean is taken.
    window_s : seconds of sending time over which the low quantile is taken.
    low_quantile : share of that time, in [0, 1], in which the link was slower than the low estimate.
    stale_s : seconds without a sample after which all samples are forgotten; inf: estimates do not age.

    Raises
    ------
    ValueError : if a rate or time is not above 0, or the quantile is not in [0, 1].
    """

    initial_bytes_per_s: float
    horizon_s: float = 1.0
    window_s: float = 2.0
    low_quantile: float = 0.2
    stale_s: float = math.inf
    updated_s: float = math.nan
    _mean: float = field(default=math.nan, init=False)
    _weight: float = field(default=0.0, init=False)  # total weight of the samples in the mean; tends to 1 with sending time
    _grains: list[float] = field(default_factory=list, init=False)  # rates, newest last; a list, because even an empty deque is large
    _open_bytes: float = field(default=0.0, init=False)  # sent in the current grain
    _open_s: float = field(default=0.0, init=False)
    _low: float = field(default=math.nan, init=False)

    def __post_init__(self) -> None:
        bound(self, "initial_bytes_per_s", "stale_s", above=0, infinite=True)
        bound(self, "horizon_s", "window_s", above=0)
        bound(self, "low_quantile", least=0, most=1)

    def update(self, now_s: float, sample: GoodputSample) -> None:
        if sample.duration_s <= 0 or sample.wire_bytes <= 0:
            return
        self._age(now_s - sample.duration_s)
        rate = sample.wire_bytes / sample.duration_s
        past, new = self._weight * math.exp(-sample.duration_s / self.horizon_s), -math.expm1(-sample.duration_s / self.horizon_s)
        self._mean = (past * self._mean + new * rate) / (past + new) if past else rate
        self._weight = past + new
        self._fill(rate, sample.duration_s)
        self._low = math.nan
        self.updated_s = now_s

    def age_s(self, now_s: float) -> float:
        """Seconds since the last sample; inf before the first."""
        return math.inf if math.isnan(self.updated_s) else max(0.0, now_s - self.updated_s)

    def mean_bytes_per_s(self, now_s: float) -> float:
        """The exponential mean of the rate."""
        return self._aged(self._mean, now_s)

    def low_bytes_per_s(self, now_s: float) -> float:
        """The rate below which the link was for a share `low_quantile` of the window; at most the mean."""
        low = self._low
        if low != low:  # nan
            if self._mean != self._mean:
                return self.initial_bytes_per_s
            low = self._low = min(self._quantile(), self._mean)
        return self._aged(low, now_s)

    def _trust(self, now_s: float) -> float:
        return max(0.0, 1.0 - self.age_s(now_s) / self.stale_s)

    def _aged(self, measured: float, now_s: float) -> float:
        if measured != measured:  # nan
            return self.initial_bytes_per_s
        if now_s <= self.updated_s or self.stale_s == math.inf:
            return measured
        trust = 1.0 - (now_s - self.updated_s) / self.stale_s
        return measured**trust * self.initial_bytes_per_s ** (1 - trust) if trust > 0 else self.initial_bytes_per_s

    def _age(self, now_s: float) -> None:
        """Forget the samples that have become stale in the idle time until now_s."""
        if math.isnan(self._mean):
            return
        trust = self._trust(now_s)
        self._weight *= trust
        del self._grains[: len(self._grains) - math.ceil(trust * len(self._grains))]
        if trust == 0.0:
            self._open_bytes = self._open_s = 0.0

    def _fill(self, rate: float, seconds: float) -> None:
        grain_s = self.window_s / GRAINS
        if seconds > 2 * self.window_s:  # one window and one grain replace all older grains, so whole grains may be skipped
            seconds = self.window_s + grain_s + math.fmod(seconds, grain_s)
        while self._open_s + seconds >= grain_s:
            taken_s = grain_s - self._open_s
            self._grains.append((self._open_bytes + rate * taken_s) / grain_s)
            if len(self._grains) > GRAINS:
                del self._grains[0]
            self._open_bytes = self._open_s = 0.0
            seconds -= taken_s
        self._open_bytes += rate * seconds
        self._open_s += seconds

    def _quantile(self) -> float:
        rates = sorted(self._grains)
        weights_s = [self.window_s / GRAINS] * len(rates)
        if self._open_s > 0:
            place = bisect_left(rates, rate := self._open_bytes / self._open_s)
            rates.insert(place, rate)
            weights_s.insert(place, self._open_s)
        enough_s, passed_s = self.low_quantile * sum(weights_s), 0.0
        for rate, seconds in zip(rates, weights_s, strict=True):
            passed_s += seconds
            if passed_s >= enough_s:
                return rate
        return rates[-1]

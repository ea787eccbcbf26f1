"""Optimised code gives the same results as its plain definition, bit by bit where rounding cannot differ."""

from __future__ import annotations

import math
from collections import deque
from copy import copy
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.bandwidth import GRAINS, Bandwidth
from abkt.policy.bitrate.base import LOSSLESS, RAW, stream
from abkt.policy.bitrate.break_even import compression_loses, full_precision_instead, stage_costs, usable_s
from abkt.policy.price import Price
from abkt.policy.view import Curve, Decision, GoodputSample
from tests.policy.every import every, policy, views

times = st.floats(0, 100)
rates = st.floats(1e3, 1e9)


@dataclass
class PlainBandwidth:
    """All samples as grains, oldest first; every estimate is computed from scratch."""

    initial: float
    window_s: float
    quantile: float
    stale_s: float
    grains: deque[float] = field(default_factory=lambda: deque(maxlen=GRAINS))
    open_bytes: float = 0.0
    open_s: float = 0.0
    updated_s: float = math.nan

    def update(self, now_s: float, sample: GoodputSample) -> None:
        if not math.isnan(self.updated_s):
            trust = self.trust(now_s - sample.duration_s)
            for _ in range(len(self.grains) - math.ceil(trust * len(self.grains))):
                self.grains.popleft()
            if trust == 0.0:
                self.open_bytes = self.open_s = 0.0
        grain_s, seconds, rate = self.window_s / GRAINS, sample.duration_s, sample.wire_bytes / sample.duration_s
        while self.open_s + seconds >= grain_s:
            taken_s = grain_s - self.open_s
            self.grains.append((self.open_bytes + rate * taken_s) / grain_s)
            self.open_bytes = self.open_s = 0.0
            seconds -= taken_s
        self.open_bytes += rate * seconds
        self.open_s += seconds
        self.updated_s = now_s

    def trust(self, now_s: float) -> float:
        return max(0.0, 1.0 - max(0.0, now_s - self.updated_s) / self.stale_s)

    def low(self, now_s: float, mean: float) -> float:
        weighted = sorted([(rate, self.window_s / GRAINS) for rate in self.grains])
        if self.open_s > 0:
            weighted = sorted([*weighted, (self.open_bytes / self.open_s, self.open_s)])
        enough_s = self.quantile * sum(s for _, s in weighted)
        passed = [sum(s for _, s in weighted[: i + 1]) for i in range(len(weighted))]
        rate = next((weighted[i][0] for i, at_s in enumerate(passed) if at_s >= enough_s), weighted[-1][0])
        trust = self.trust(now_s)
        return min(rate, mean) ** trust * self.initial ** (1 - trust)


@given(
    samples=st.lists(st.tuples(st.floats(1e-4, 3), st.floats(1e-4, 1.9), rates), min_size=1, max_size=12),
    quantile=st.floats(0, 1),
    stale_s=st.sampled_from([1.0, 20.0, math.inf]),
    asked_after_s=st.floats(0, 30),
)
def test_the_low_quantile(samples, quantile, stale_s, asked_after_s) -> None:
    fast = Bandwidth(5e6, low_quantile=quantile, stale_s=stale_s)
    plain = PlainBandwidth(5e6, fast.window_s, quantile, stale_s)
    now_s = 0.0
    for idle_s, duration_s, rate in samples:
        now_s += idle_s + duration_s
        sample = GoodputSample(rate * duration_s, duration_s)
        fast.update(now_s, sample)
        plain.update(now_s, sample)
        mean = fast.mean_bytes_per_s(now_s)  # at this moment the measurement has not aged
        assert fast.low_bytes_per_s(now_s) == plain.low(now_s, mean)
    later = now_s + asked_after_s
    assert fast.low_bytes_per_s(later) == pytest.approx(plain.low(later, mean), rel=1e-12)


changes = st.tuples(st.sampled_from(["enter", "leave", "pass"]), st.floats(1, 2e7))


@given(st.lists(changes, max_size=12), st.sampled_from([1e3, 1e6, math.inf]))
def test_the_price_follows_its_formula(changes, bytes_per_s) -> None:
    """Time stands still here, so the rate stays at the NIC's best; another test covers the rate."""
    price = Price(bytes_per_s)
    entered = gone = 0.0
    for change, size in changes:
        if change == "enter":
            price.enter(0.0, size)
            gone = gone if entered >= 1 else 0.0
            entered += size
        elif change == "leave":
            price.leave(size)
            entered, gone = max(0.0, entered - size), max(0.0, gone - size)
        else:
            price.passed(0.0, size)
            gone += size
        waits_s = max(0.0, entered - gone) / bytes_per_s
        assert price.per_second() == pytest.approx(min(price.high, price.low * math.exp(min(700.0, waits_s / price.scale_s))), rel=1e-6)


@given(views(), rates, st.booleans(), st.integers(0, 5))
def test_full_precision_or_a_stream(view, rate, exact, cut) -> None:
    view = replace(view, lossless_bytes=view.lossless_bytes if exact else 0.0)
    rival = stream(view, "slope", cut)

    def seconds(decision: Decision) -> float:
        encode_s, wire_bytes, expand_s = stage_costs(view, decision)
        return encode_s + wire_bytes / rate + expand_s

    whole = LOSSLESS if exact and not compression_loses(rate, view, LOSSLESS) else RAW
    instead = full_precision_instead(lambda decision: usable_s(rate, view, decision), view, rival, rival, view.hidden_s, 0.0)
    assert instead == (whole if seconds(whole) <= max(view.hidden_s, seconds(rival)) else None)


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 1)), min_size=1, max_size=65), st.floats(0, 1e-3))
def test_the_cut_at_a_price(points, price) -> None:
    sizes = sorted(size for size, _ in points)
    distortion = sorted((left for _, left in points), reverse=True)
    curve = Curve(tuple(sizes), tuple(distortion), tuple(float(i) for i in range(len(sizes))))
    best = min(range(len(sizes)), key=lambda cut: distortion[cut] + price * sizes[cut])
    assert curve.cut_at_price(price) == best


@every
@given(view=views())
def test_no_policy_changes_the_view(name, view) -> None:
    before = copy(view)
    policy(name).decide(0.5, view)
    assert view == before

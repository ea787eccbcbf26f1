from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from abkt.policy.bandwidth import GRAINS, Bandwidth
from abkt.policy.view import GoodputSample

samples = st.lists(st.tuples(st.floats(1.0, 1e6), st.floats(1e-4, 3.0)), min_size=1, max_size=30)  # (rate, seconds)


def fed(parts, **fields) -> Bandwidth:
    link = Bandwidth(5.0, **fields)
    for i, (rate, seconds) in enumerate(parts):
        link.update(float(i), GoodputSample(rate * seconds, seconds))
    return link


@given(samples, st.data())
def test_cutting_a_sample_in_two_changes_nothing(parts, data) -> None:
    whole = fed(parts)
    at = data.draw(st.integers(0, len(parts) - 1))
    share = data.draw(st.floats(0.01, 0.99))
    rate, seconds = parts[at]
    cut = fed([*parts[:at], (rate, seconds * share), (rate, seconds * (1 - share)), *parts[at + 1 :]])
    assert cut.mean_bytes_per_s(0.0) == pytest.approx(whole.mean_bytes_per_s(0.0))
    assert cut._quantile() == pytest.approx(whole._quantile(), rel=1e-6) or near_a_step(parts)


def near_a_step(parts) -> bool:
    """Rounding may move a grain's edge, and a quantile that falls on an edge between two grains may then be either of them."""
    values = [fed(parts, low_quantile=q)._quantile() for q in (0.2 - 1e-6, 0.2, 0.2 + 1e-6)]
    grains = sum(seconds for _, seconds in parts) / (2.0 / GRAINS)
    return len(set(values)) > 1 or abs(grains - round(grains)) < 1e-4


@given(samples, st.sampled_from([0.0, 0.1, 0.35, 0.8, 1.0]))
def test_the_estimate_is_the_quantile_of_the_windows_grains(parts, quantile) -> None:
    """Against the integral of the rate over sending time, differenced at the grains' edges and weighted by length."""
    link = fed(parts, low_quantile=quantile)
    ends = np.cumsum([0.0, *[s for _, s in parts]])
    passed = np.cumsum([0.0, *[r * s for r, s in parts]])
    grain_s = 2.0 / GRAINS
    full = int(ends[-1] / grain_s + 1e-9)
    assume(abs(ends[-1] / grain_s - round(ends[-1] / grain_s)) > 1e-3 and max(s for _, s in parts) <= 2 * 2.0)
    edges = np.append(np.arange(max(0, full - GRAINS), full + 1) * grain_s, ends[-1])
    rates = np.diff(np.interp(edges, ends, passed)) / np.diff(edges)
    order, weights = np.argsort(rates), np.diff(edges)
    reached = np.cumsum(weights[order])
    expected = rates[order][np.searchsorted(reached, quantile * reached[-1] * (1 - 1e-9))]
    after = rates[order][min(np.searchsorted(reached, quantile * reached[-1] * (1 + 1e-9)), len(order) - 1)]
    assert link._quantile() == pytest.approx(expected, rel=1e-6) or link._quantile() == pytest.approx(after, rel=1e-6)


@given(samples)
def test_estimates_lie_among_the_samples(parts) -> None:
    link = fed(parts)
    slowest, fastest = min(r for r, _ in parts), max(r for r, _ in parts)
    assert slowest * (1 - 1e-9) <= link.low_bytes_per_s(99.0) <= link.mean_bytes_per_s(99.0) <= fastest * (1 + 1e-9)


@given(samples, st.floats(2.1, 50))
def test_an_estimate_forgets_samples_older_than_its_window(parts, seconds) -> None:
    assert fed([*parts, (777.0, seconds)], low_quantile=0.0)._quantile() == pytest.approx(777.0)


def test_a_drop_is_seen_after_a_fifth_of_the_window() -> None:
    """low_quantile 0.2 of 2 s: 0.4 s of sending at the lower rate are enough, and 0.3 s are not."""
    link = fed([(1000.0, 2.5), (10.0, 0.4 + 2 * 2.0 / GRAINS)])
    assert link.low_bytes_per_s(1.0) == pytest.approx(10.0)
    assert fed([(1000.0, 2.5), (10.0, 0.3)]).low_bytes_per_s(1.0) > 10.0


def test_the_mean_forgets_at_the_rate_of_its_horizon() -> None:
    link = fed([(100.0, 5.0), (200.0, 1.0)])
    weights = np.exp(-1.0) - np.exp(-6.0), 1 - np.exp(-1.0)
    assert link.mean_bytes_per_s(1.0) == pytest.approx((100 * weights[0] + 200 * weights[1]) / sum(weights))
    assert link.updated_s == 1.0


def test_the_configured_rate_holds_before_the_first_sample_and_after_empty_ones() -> None:
    link = Bandwidth(5.0)
    link.update(1.0, GoodputSample(0.0, 1.0))
    link.update(1.0, GoodputSample(1.0, 0.0))
    assert link.low_bytes_per_s(1.0) == link.mean_bytes_per_s(1.0) == 5.0
    assert link.age_s(1.0) == math.inf


# -- age ---------------------------------------------------------------------------------------------------------------------------


def aged(parts, stale_s: float) -> Bandwidth:
    """Samples one right after the other, the last one ending at 0 s."""
    link, now_s = Bandwidth(5.0, stale_s=stale_s), -sum(seconds for _, seconds in parts)
    for rate, seconds in parts:
        now_s += seconds
        link.update(now_s, GoodputSample(rate * seconds, seconds))
    link.updated_s = 0.0  # rounding aside
    return link


def test_an_estimate_ages_as_worked_out_by_hand() -> None:
    """5 bytes/s configured, 80 measured, geometric ageing: 40 after a quarter of stale_s, 20 after half, 5 at the end."""
    link = aged([(80.0, 9.0)], stale_s=40.0)
    for now_s, rate in ((-1.0, 80.0), (0.0, 80.0), (10.0, 40.0), (20.0, 20.0), (30.0, 10.0), (40.0, 5.0), (1e9, 5.0)):
        assert link.mean_bytes_per_s(now_s) == pytest.approx(rate)
        assert link.low_bytes_per_s(now_s) == pytest.approx(rate)
        assert link.age_s(now_s) == max(0.0, now_s)


@given(samples, st.floats(0.1, 100), st.lists(st.floats(0, 200), min_size=2, max_size=2))
def test_estimates_age_from_the_measured_to_the_configured_rate(parts, stale_s, moments) -> None:
    link, fresh = aged(parts, stale_s), aged(parts, math.inf)
    first_s, then_s = sorted(moments)
    for estimate in (Bandwidth.mean_bytes_per_s, Bandwidth.low_bytes_per_s):
        measured = estimate(fresh, 0.0)
        assert estimate(link, 0.0) == pytest.approx(measured)
        assert estimate(fresh, 1e9) == measured
        assert abs(math.log(estimate(link, then_s) / 5.0)) <= abs(math.log(estimate(link, first_s) / 5.0)) + 1e-9
        assert min(measured, 5.0) * (1 - 1e-9) <= estimate(link, then_s) <= max(measured, 5.0) * (1 + 1e-9)
        assert estimate(link, stale_s) == 5.0


@given(samples, samples, st.floats(0.1, 100))
def test_after_stale_s_the_past_is_forgotten_for_good(before, after, stale_s) -> None:
    link, new = aged(before, stale_s), Bandwidth(5.0, stale_s=stale_s)
    now_s = 1.1 * stale_s
    for rate, seconds in after:
        now_s += seconds
        for one in (link, new):
            one.update(now_s, GoodputSample(rate * seconds, seconds))
    assert link.mean_bytes_per_s(now_s) == pytest.approx(new.mean_bytes_per_s(now_s))
    assert link.low_bytes_per_s(now_s) == pytest.approx(new.low_bytes_per_s(now_s))


@given(samples, st.floats(0.5, 100), st.floats(0, 1))
def test_idle_time_removes_the_oldest_share_of_the_window(parts, stale_s, share) -> None:
    link = aged(parts, stale_s)
    before = list(link._grains)
    link.update(share * stale_s + 1e-9, GoodputSample(7e-9, 1e-9))  # too short to fill a grain, with rare exceptions
    assume(len(link._grains) <= len(before) and (not link._grains or link._grains[-1] in before[-1:]))
    kept = list(link._grains)
    assert abs(len(kept) - (1 - share) * len(before)) < 1 + 1e-6 * len(before)
    assert kept == before[len(before) - len(kept) :]


@given(samples, st.floats(5, 100))
def test_continuous_sending_does_not_age(parts, stale_s) -> None:
    old, ageless = aged(parts, stale_s), aged(parts, math.inf)
    assert old.mean_bytes_per_s(0.0) == pytest.approx(ageless.mean_bytes_per_s(0.0))
    assert old._quantile() == pytest.approx(ageless._quantile())


def test_a_stale_estimate_returns_to_an_unlimited_link() -> None:
    link = Bandwidth(math.inf, stale_s=10.0)
    link.update(0.0, GoodputSample(8.0, 1.0))
    assert [link.mean_bytes_per_s(t) for t in (0.0, 5.0, 10.0)] == [8.0, math.inf, math.inf]


@pytest.mark.parametrize("fields", [(0.0,), (1.0, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.5), (1.0, 1.0, 1.0, 0.2, 0.0)])
def test_impossible_fields_are_refused(fields) -> None:
    with pytest.raises(ValueError, match=r"is .*; it must be"):
        Bandwidth(*fields)

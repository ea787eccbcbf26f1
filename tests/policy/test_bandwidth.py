from __future__ import annotations

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
    assert cut.mean_bytes_per_s() == pytest.approx(whole.mean_bytes_per_s())
    assert cut._quantile() == pytest.approx(whole._quantile(), rel=1e-6) or near_a_step(parts)


def near_a_step(parts) -> bool:
    """Rounding may move a grain's edge, and a quantile that falls on an edge between two grains may then be either of them."""
    values = [fed(parts, low_quantile=q)._quantile() for q in (0.2 - 1e-6, 0.2, 0.2 + 1e-6)]
    grains = sum(seconds for _, seconds in parts) / (2.0 / GRAINS)
    return len(set(values)) > 1 or abs(grains - round(grains)) < 1e-4


@given(samples, st.sampled_from([0.0, 0.1, 0.35, 0.8, 1.0]))
def test_the_quantile_of_the_window_s_grains(parts, quantile) -> None:
    """Against the integral of the rate over sending time, differenced at the grains' edges and weighted by length."""
    link = fed(parts, low_quantile=quantile)
    ends = np.cumsum([0.0, *[s for _, s in parts]])
    passed = np.cumsum([0.0, *[r * s for r, s in parts]])
    grain_s = 2.0 / GRAINS
    full = int(ends[-1] / grain_s + 1e-9)
    assume(abs(ends[-1] / grain_s - round(ends[-1] / grain_s)) > 1e-6 and max(s for _, s in parts) <= 2 * 2.0)
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
    assert slowest * (1 - 1e-9) <= link.low_bytes_per_s() <= link.mean_bytes_per_s() <= fastest * (1 + 1e-9)


@given(samples, st.floats(2.1, 50))
def test_the_window_forgets(parts, seconds) -> None:
    assert fed([*parts, (777.0, seconds)], low_quantile=0.0)._quantile() == pytest.approx(777.0)


def test_a_drop_is_seen_after_a_fifth_of_the_window() -> None:
    """low_quantile 0.2 of 2 s: 0.4 s of sending at the lower rate are enough, and 0.3 s are not."""
    link = fed([(1000.0, 2.5), (10.0, 0.4 + 2 * 2.0 / GRAINS)])
    assert link.low_bytes_per_s() == pytest.approx(10.0)
    assert fed([(1000.0, 2.5), (10.0, 0.3)]).low_bytes_per_s() > 10.0


def test_the_mean_forgets_by_its_horizon() -> None:
    link = fed([(100.0, 5.0), (200.0, 1.0)])
    assert link.mean_bytes_per_s() == pytest.approx(200 - 100 * np.exp(-1.0))
    assert link.updated_s == 1.0


def test_before_the_first_sample_and_for_empty_ones() -> None:
    link = Bandwidth(5.0)
    link.update(1.0, GoodputSample(0.0, 1.0))
    link.update(1.0, GoodputSample(1.0, 0.0))
    assert link.low_bytes_per_s() == link.mean_bytes_per_s() == 5.0


@pytest.mark.parametrize("fields", [(0.0,), (1.0, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.5)])
def test_refused(fields) -> None:
    with pytest.raises(ValueError, match="bandwidth"):
        Bandwidth(*fields)

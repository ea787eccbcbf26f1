"""Intervals are paired and contain the true value as often as they should."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.lib import intervals


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """200 experiments of 64 pairs whose true ratio is 1.2. Of 200 with 95 %, fewer than 175 has a chance below 1e-5."""
    held = 0
    places = intervals.paired_draws(64)
    for seed in range(200):
        random = np.random.default_rng(seed)
        a = random.gamma(4.0, 1.0, 64)
        b = 1.2 * a + random.normal(0, 0.5, 64)
        held += intervals.relative(a, b, np.nanmean, places).holds(0.2)
    assert 175 <= held < 200


def test_blocks_widen_the_interval_of_requests_that_resemble_their_neighbours() -> None:
    """Noise that lasts for 8 requests: as independent draws its interval would be far too narrow."""
    random = np.random.default_rng(0)
    a = np.full(512, 10.0)
    b = a + np.repeat(random.normal(0, 1, 64), 8)
    blocks = intervals.difference(a, b, np.nanmean, intervals.paired_draws(512))
    single = intervals.difference(a, b, np.nanmean, random.integers(0, 512, (1000, 512)))
    assert blocks.high - blocks.low > 1.8 * (single.high - single.low)


def test_a_pair_counts_only_where_both_are_there() -> None:
    a, b = np.array([1.0, np.nan, 3.0]), np.array([2.0, 5.0, np.nan])
    found = intervals.difference(a, b, np.nanmean, np.array([[0, 1, 2], [0, 0, 1]]))
    assert (found.low, found.high) == (1.0, 1.0)
    nothing = intervals.relative(np.zeros(3), np.ones(3), np.nanmean, intervals.paired_draws(3))
    assert np.isnan([nothing.low, nothing.high]).all()


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_draws_have_every_request_about_as_often(count: int) -> None:
    places = intervals.paired_draws(count)
    assert places.shape == (1000, count)
    often = np.bincount(places.ravel(), minlength=count)
    assert often.min() > 850
    assert often.max() < 1150


def test_the_mean_of_repeats() -> None:
    found = intervals.mean([1.0, 2.0, 3.0, 4.0])
    assert 1.0 <= found.low < 2.5 < found.high <= 4.0
    assert np.isnan(intervals.mean([1.0]).low)

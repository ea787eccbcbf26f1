"""The order of passes against independent solvers: hulls by geometry, cuts by trying every allocation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from abkt.codec.cells import Cells
from abkt.codec.order import MAX_BANDS, NEVER, curve_of, distortions, hull_slopes, slope_bands, uniform_bands, weighted_distortion

levels = st.lists(st.floats(0, 100), min_size=4, max_size=4).map(lambda d: sorted(d, reverse=True))


def lower_hull(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points on the lower convex hull, found by trying every chord."""
    return [
        i
        for i, (x, y) in enumerate(points)
        if all(y <= ya + (yb - ya) * (x - xa) / (xb - xa) + 1e-12 for xa, ya in points[:i] for xb, yb in points[i + 1 :])
    ]


@given(levels)
@settings(deadline=None)
def test_slopes_are_those_of_the_lower_convex_hull(distortion):
    sizes = np.array([[16], [32], [32], [64]])
    slopes = hull_slopes(sizes, np.array(distortion)[:, None])[:, 0]
    assert (np.diff(slopes) <= 0).all(), "a later pass with a steeper slope would be sent before an earlier one"
    spent = sizes.cumsum()
    hull = lower_hull(list(zip(spent.tolist(), distortion, strict=True)))
    for a, b in itertools.pairwise(hull):
        expected = (distortion[a] - distortion[b]) / (spent[b] - spent[a])
        assert np.allclose(slopes[a:b], expected, rtol=1e-9, atol=1e-12)


@given(st.lists(levels, min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_every_cut_has_the_least_distortion_of_its_size(cells):
    left = np.array(cells).T
    sizes = np.tile(np.array([[16], [32], [32], [64]]), (1, len(cells)))
    bands = slope_bands(sizes, left)
    spent = sizes[1:].cumsum(0)
    every = [
        (sum(spent[p - 1, c] for c, p in enumerate(choice) if p), sum(left[p, c] for c, p in enumerate(choice)))
        for choice in itertools.product(range(4), repeat=len(cells))
    ]
    for cut in range(bands.count + 1):
        present = (bands.of < cut).sum(0)
        size = sum(spent[p - 1, c] for c, p in enumerate(present) if p)
        distortion = sum(left[p, c] for c, p in enumerate(present))
        best = min(d for s, d in every if s <= size)
        assert distortion <= best + 1e-9, "another allocation of as many bytes leaves less"


@pytest.mark.parametrize("seed", range(4))
def test_no_mixture_of_allocations_is_better_by_one_percent(seed):
    """Every band's end is compared with a bound for any allocation: the linear program over all convex mixtures of each cell's cuts."""
    rng = np.random.default_rng(seed)
    cells, passes = 60, 6
    sizes = rng.integers(2, 40, (passes + 1, cells)) * 16
    steps = rng.exponential(size=(passes + 1, cells)) * 3.0 ** -np.arange(passes + 1)[:, None] * rng.lognormal(sigma=2, size=cells)
    left = steps[::-1].cumsum(0)[::-1] * rng.choice([1.0, 0.3], (passes + 1, cells), p=[0.9, 0.1])  # some passes raise the distortion
    bands = slope_bands(sizes, left)
    spent = np.concatenate((np.zeros((1, cells)), sizes[1:].cumsum(0)))
    every = np.arange((passes + 1) * cells) % cells
    of_cell = (every[None] == np.arange(cells)[:, None]).astype(float)
    for cut in range(1, bands.count + 1, 7):
        present = (bands.of < cut).sum(0)
        size, distortion = spent[present, np.arange(cells)].sum(), left[present, np.arange(cells)].sum()
        best = linprog(left.reshape(-1), spent.reshape(1, -1), [size], of_cell, np.ones(cells), bounds=(0, 1))
        assert best.status == 0
        assert distortion <= best.fun * 1.01


def test_bands_are_few_and_in_order_and_hold_every_pass():
    rng = np.random.default_rng(0)
    left = np.sort(rng.exponential(size=(4, 3000)) * rng.lognormal(sigma=3, size=3000), axis=0)[::-1]
    sizes = np.tile(np.array([[256], [2048], [2048], [4096]]), (1, 3000))
    bands = slope_bands(sizes, left)
    assert 32 <= bands.count <= MAX_BANDS
    assert set(np.unique(bands.of)) == set(range(bands.count))
    assert (np.diff(bands.of.astype(int), axis=0) >= 0).all()
    amounts = np.bincount(bands.of.ravel(), weights=sizes[1:].ravel())
    assert amounts.max() / amounts.mean() < 2, "bands of about equal bytes"


def test_a_pass_that_removes_nothing_is_never_sent():
    sizes = np.tile(np.array([[16], [32], [32], [64]]), (1, 3))
    left = np.array([[5.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.5, 1.0, 0.0], [2.0, 1.0, 0.0]])
    bands = slope_bands(sizes, left)
    assert bands.of.tolist() == [[0, NEVER, NEVER], [NEVER] * 3, [NEVER] * 3]
    assert bands.count == 1


def test_weighted_distortion_by_hand(layout_of):
    cells = Cells(layout_of(layers=1, heads=2, dim=16, block_tokens=4), tokens=3 * 4 + 1, tile_tokens=4, depth_bits=2)
    assert cells.shape == (1, 2, 2, 2)  # 8 cells: K head 0 tiles 0 1, K head 1, V head 0, V head 1
    errors = np.array([[4.0, 0, 0, 4, 1, 1, 1, 1], [1.0, 0, 0, 1, 0, 0, 0, 0.5]])
    deviation = np.array([[[6.0, 2.0], [1.0, 1.0]]])
    flat = weighted_distortion(errors, deviation, None, cells).sum(1)
    assert flat.tolist() == [8 / 8 / 2 + 4 / 2 / 2, 2 / 8 / 2 + 0.5 / 2 / 2]
    weights = np.ones(cells.shape)
    weights[0, 1] = 3  # V counts three times as much as K; the mean weight is 2
    tripled = weighted_distortion(errors, deviation, weights, cells).sum(1)
    assert np.allclose(tripled, [0.5 / 2 + 1 * 1.5, 0.125 / 2 + 0.125 * 1.5])
    assert np.array_equal(weighted_distortion(errors, deviation, 7 * weights, cells).sum(1), tripled)


@pytest.mark.parametrize(
    ("weights", "message"), [(np.ones((1, 2, 2, 3)), r"\(1, 2, 2, 3\).*\(1, 2, 2, 2\)"), (np.zeros((1, 2, 2, 2)), "not all 0")]
)
def test_wrong_weights_are_refused(layout_of, weights, message):
    cells = Cells(layout_of(layers=1, heads=2, dim=16, block_tokens=4), tokens=13, tile_tokens=4, depth_bits=2)
    with pytest.raises(ValueError, match=message):
        weighted_distortion(np.ones((2, 8)), np.ones((1, 2, 2)), weights, cells)


def test_the_uniform_curve_has_one_rate_for_each_pass(layout_of):
    cells = Cells(layout_of(dim=16, block_tokens=4), tokens=41, tile_tokens=8, depth_bits=8)
    verbatim = np.zeros(cells.count, dtype=bool)
    verbatim[3] = True
    left = np.linspace(1, 0.1, 7)[:, None] * np.ones(cells.count)
    bands = uniform_bands(cells.sizes, verbatim)
    ends = (1000, *(1000 + cells.sizes[1:, ~verbatim].sum(1).cumsum()).tolist())
    curve = curve_of(bands, cells, verbatim, ends, distortions(bands, left))
    assert curve.bits == (0, 1, 2, 3, 4, 6, 8)
    assert np.allclose(curve.distortion, left[:, 0] * (cells.count - 1) + 1), (
        "the verbatim cell's share of the first is not removed by any band"
    )
    assert (bands.of[:, 3] == NEVER).all()
    assert curve.bytes[0] == 1000
    assert curve.bytes[-1] == 1000 + cells.sizes[1:, ~verbatim].sum()

"""Differences of neighbouring tokens: the transform is orthonormal, is used only where it saves bytes, and keeps streams embedded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.codec.calibration import Calibration
from abkt.codec.codec import Codec
from abkt.codec.entropy import haar
from abkt.codec.entropy.stats import rotated, rotation_of
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

TOKENS, DIM = 800, 32


def test_the_transform_of_four_tokens_is_as_worked_out_by_hand():
    """Four tokens of one channel give their sum over 2, the difference of the pairs' sums over 2, and the difference within each pair."""
    x = np.array([[7.0], [5.0], [2.0], [0.0]])
    y = haar.forward(x, 2)
    assert y.shape == (1, 4)
    assert y[0] == pytest.approx([(7 + 5 + 2 + 0) / 2, (7 + 5 - 2 - 0) / 2, 2 / 2**0.5, 2 / 2**0.5], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_transform_keeps_squared_error_and_can_be_inverted(levels, groups, channels, seed):
    x = np.random.default_rng(seed).standard_normal((2, groups << levels, channels)).astype(np.float32)
    y = haar.forward(x, levels)
    assert y.shape == (2, groups, channels << levels)
    assert np.allclose(haar.inverse(y, levels), x, atol=1e-5)
    assert np.square(y.astype(np.float64)).sum() == pytest.approx(np.square(x.astype(np.float64)).sum(), rel=1e-5)
    bands = haar.bands_of(y, levels)
    deviations = np.concatenate([np.square(band).mean(1) for band in bands], 1)
    by_column = haar.per_coefficient(deviations, levels)
    assert by_column.sum() * groups == pytest.approx(np.square(y).sum(), rel=1e-4)


def neighbours(correlation: float, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A first-order autoregressive process of variance 1 along the second last axis."""
    x = np.random.default_rng(seed).standard_normal(shape)
    for t in range(1, shape[-2]):
        x[..., t, :] = correlation * x[..., t - 1, :] + np.sqrt(1 - correlation**2) * x[..., t, :]
    return x


def filled(correlation: float, theta: float | None = None) -> tuple[Pool, list[int]]:
    """K and V whose tokens resemble their neighbours, K rotated by position if theta is given."""
    layout = KVLayout(ModelSpec("m", 1, 2, DIM), TOKENS // 16 + 2)
    pool, table = Pool(layout), list(range(TOKENS // 16))[::-1]
    k, v = neighbours(correlation, 1, (2, TOKENS, DIM)), neighbours(correlation, 2, (2, TOKENS, DIM))
    if theta:
        k = rotated(k + 2, rotation_of(TOKENS, DIM, theta).astype(np.float64))
    pool.write(table, 0, 0, *(torch.from_numpy(x).bfloat16() for x in (k, v)))
    return pool, table


def held(pool: Pool, table: list[int]) -> torch.Tensor:
    return torch.stack(pool.read(table, 0, TOKENS)).double()


def bytes_at(codec: Codec, pool: Pool, table: list[int], distortion: float) -> int:
    stream = codec.encode(pool, table, TOKENS, coder="entropy")
    cut = next(i for i, d in enumerate(stream.curve.distortion) if d <= distortion)
    out = Pool(pool.layout)
    done = Codec(pool.layout, tile_tokens=codec.tile_tokens).expand(stream.prefix(cut), out, table)
    source = held(pool, table)
    first, last = 16, TOKENS - 16
    left = (source - held(out, table))[..., first:last, :].square().sum((1, 2, 3))
    middle = source[..., first:last, :]
    spread = (middle - middle.mean(2, keepdim=True)).square().sum((1, 2, 3))
    assert float((left / spread).mean()) == pytest.approx(done.distortion, rel=1e-3), "what the stream says of its error is so"
    return stream.ends[cut]


def calibration(levels: int) -> Calibration:
    return Calibration("m", 1.0, np.ones((1, 2, 2)), np.full((1, 2, 2), levels, dtype=np.uint8))


@pytest.mark.parametrize("theta", [None, 10_000.0])
def test_correlated_tokens_save_the_bits_that_theory_predicts(theta):
    """At a correlation of 0.9, three Haar levels save 0.9 bits a value at high rates. No transform can save more than 1.2."""
    pool, table = filled(0.9, theta)
    without = bytes_at(Codec(pool.layout, rope_theta=theta, calibration=calibration(0)), pool, table, 0.01)
    chosen = bytes_at(Codec(pool.layout, rope_theta=theta), pool, table, 0.01)
    told = bytes_at(Codec(pool.layout, rope_theta=theta, calibration=calibration(3)), pool, table, 0.01)
    values = 2 * 2 * TOKENS * DIM
    assert chosen == told
    assert 0.6 < 8 * (without - chosen) / values < 1.2


def test_uncorrelated_tokens_get_no_levels():
    pool, table = filled(0.0)
    stream = Codec(pool.layout).encode(pool, table, TOKENS, coder="entropy")
    assert stream.header.levels.size
    assert not stream.header.levels.any()


def test_small_tiles_use_as_many_levels_as_their_tokens_allow():
    pool, table = filled(0.9)
    layout = KVLayout(ModelSpec("m", 1, 2, DIM), TOKENS // 4 + 2, block_tokens=4)
    small = Pool(layout)
    small.write(list(range(TOKENS // 4)), 0, 0, *pool.read(table, 0, TOKENS))
    stream = Codec(layout, tile_tokens=16, calibration=calibration(3)).encode(small, list(range(TOKENS // 4)), TOKENS, coder="entropy")
    assert set(stream.header.levels.tolist()) == {1}
    assert stream.verbatim_cells == 0


def test_an_outlier_does_not_lower_the_precision_of_its_neighbours():
    """A coefficient beyond every table is sent uncoded, so all tokens of its group keep their precision."""
    pool, table = filled(0.9)
    pool.data[table[10], 0, 1, 0, 3, 5] = 3e4
    stream = Codec(pool.layout, calibration=calibration(3)).encode(pool, table, TOKENS, coder="entropy")
    out = Pool(pool.layout)
    Codec(pool.layout).expand(stream.prefix(len(stream.ends) - 1), out, table)
    x, y = held(pool, table), held(out, table)
    assert y[1, 0, 163, 5] == x[1, 0, 163, 5]
    group = [t for t in range(160, 168) if t != 163]
    assert float((x - y)[1, 0, group, 5].abs().max()) < 0.05

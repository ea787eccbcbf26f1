"""Properties of the entropy coder: measured errors of prefixes, shapes, difficult channels, outliers, damage and rotating centres."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.codec.entropy import tables
from abkt.codec.entropy.oracle import EntropyCells, decode_cells, encode_cells
from abkt.codec.entropy.plan import FINER, NEVER, PASSES, START_AT, plan_of
from abkt.codec.entropy.stats import Stats, prediction_of, rotation_of, rounded, strip_stats

BF16 = torch.bfloat16


def strips(seed: int, count: int, tokens: int, dim: int, dtype: torch.dtype = BF16, spread: float = 0.7) -> np.ndarray:
    """Strips [count, tokens, dim] whose channels have their own offset and spread, as a pool of `dtype` holds them."""
    rng = np.random.default_rng(seed)
    scale = np.exp(spread * rng.standard_normal((count, 1, dim)))
    x = scale * (rng.standard_normal((count, tokens, dim)) + 3 * rng.standard_normal((count, 1, dim)))
    return rounded(x.astype(np.float32), dtype)


def squared_error(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.square(x.astype(np.float64) - y).sum((1, 2))


def coded(x: np.ndarray, depth: int = PASSES, dtype: torch.dtype = BF16) -> tuple[EntropyCells, Stats, np.ndarray]:
    stats, strip = strip_stats(x, dtype), np.arange(len(x))
    return encode_cells(x, strip, stats, depth, dtype), stats, strip


@pytest.mark.parametrize(
    ("tokens", "dim", "dtype"),
    [(128, 64, BF16), (77, 80, BF16), (1, 96, torch.float16), (9, 128, torch.float32), (33, 256, BF16), (128, 20, torch.float16)],
)
def test_every_prefix_decodes_to_its_measured_error(tokens: int, dim: int, dtype: torch.dtype) -> None:
    x = strips(tokens, 3, max(tokens, 40), dim, dtype)
    stats, strip = strip_stats(x, dtype), np.arange(3)
    x = np.ascontiguousarray(x[:, :tokens])
    done = encode_cells(x, strip, stats, PASSES, dtype)
    assert not done.fallback.any()
    for passes in range(PASSES + 1):
        y = decode_cells(done.slots[:passes], strip, stats, tokens, dtype)
        assert np.array_equal(squared_error(x, y), done.errors[passes])
    have = np.array([0, 2, 5])  # each cell may stop at a different pass
    y = decode_cells(done.slots, strip, stats, tokens, dtype, have=have)
    assert np.array_equal(squared_error(x, y), done.errors[have, strip])


def test_a_shorter_stream_is_a_prefix_of_a_longer_one() -> None:
    x = strips(1, 4, 64, 32)
    deep, shallow = coded(x)[0], coded(x, depth=3)[0]
    assert shallow.slots == deep.slots[:3]
    assert np.array_equal(shallow.errors, deep.errors[:4])


def test_each_pass_lowers_the_error_of_normal_channels_as_theory_predicts_for_its_bits() -> None:
    x = strips(2, 4, 512, 64, torch.float32)
    done = coded(x, dtype=torch.float32)[0]
    noise = done.errors.sum(1) / done.errors[0].sum()
    ratios = noise[1:] / noise[:-1]
    assert (ratios[1:4] < 0.33).all()  # one bit lowers the error to 1/4
    assert (ratios[4:] < 0.075).all()  # two bits lower it to 1/16
    bits = np.array([[8 * len(d) for d in row] for row in done.slots]).mean(1).cumsum() / x[0].size
    assert np.allclose(bits, (1, 2, 3, 4, 6, 8), atol=0.2)


def test_constant_channels_take_no_bits_and_are_lossless() -> None:
    x = strips(3, 2, 128, 64)
    varied = coded(x)[0]
    x = np.concatenate((x, np.full((2, 128, 64), 3.25, dtype=np.float32)), 2)
    done, stats, strip = coded(x)
    assert not done.fallback.any()
    assert done.slots == varied.slots
    assert (decode_cells(done.slots[:1], strip, stats, 128, BF16)[..., 64:] == 3.25).all()
    flat = np.full((1, 16, 32), -7.5, dtype=np.float32)
    done, stats, strip = coded(flat)
    assert (done.errors == 0).all()
    assert np.array_equal(decode_cells(done.slots, strip, stats, 16, BF16), flat)


def test_an_outlier_channel_does_not_lower_the_precision_of_the_others() -> None:
    x = strips(4, 2, 256, 64, torch.float32, spread=0.0)
    plain = coded(x, dtype=torch.float32)[0].errors
    biased = x.copy()
    biased[..., 5] += 100 * x[..., 5].std()
    done = coded(biased, dtype=torch.float32)[0]
    assert not done.fallback.any()
    assert np.allclose(done.errors, plain, rtol=0.02)
    wide = x.copy()
    wide[..., 5] *= 100  # its deviation is beyond 4 steps: it gets a coarser step of its own, and every channel is still coded
    done = coded(wide, dtype=torch.float32)[0]
    assert not done.fallback.any()
    others = np.delete(np.arange(64), 5)
    y = decode_cells(done.slots, np.arange(2), strip_stats(wide, torch.float32), 256, torch.float32)
    assert squared_error(wide[..., others], y[..., others]).sum() < 1e-3 * np.square(x).sum()


def test_a_value_beyond_every_table_is_lossless_and_changes_no_neighbour() -> None:
    x = strips(5, 1, 64, 32)[[0, 0, 0, 0, 0]]
    stats, strip = strip_stats(x[:1], BF16), np.zeros(5, dtype=np.int64)
    whole = encode_cells(x, strip, stats, 4, BF16)
    x[1, 3, 7], x[1, 63, 31], x[2, 0, 0], x[3, 63, 31] = 2.0**20, -(2.0**40), np.nan, 2.0**60
    done = encode_cells(x, strip, stats, 4, BF16)
    assert done.fallback.tolist() == [False, False, True, True, False]
    for row, untouched in zip(done.slots, whole.slots, strict=True):
        assert row[0] == untouched[0]
        assert row[4] == untouched[4]
        assert row[2] == row[3] == b""
    assert np.isfinite(done.errors).all()
    assert len(done.slots[0][1]) < len(whole.slots[0][1]) + 2 + 2 * (2 + 2) + 8  # count, positions, values; the symbols change a little
    for have in range(1, 5):
        y = decode_cells(done.slots, strip[:2], stats, 64, BF16, have=np.array([have, have]))
        assert y[1, 3, 7] == x[1, 3, 7]
        assert y[1, 63, 31] == x[1, 63, 31]
        assert squared_error(x[1:2], y[1:2]).sum() == pytest.approx(done.errors[have, 1])
        assert done.errors[have, 1] < 1.5 * done.errors[have, 0]


def test_a_cell_with_more_outliers_than_one_in_64_falls_back_to_verbatim() -> None:
    x = strips(5, 1, 64, 32)[[0, 0]]
    stats, strip = strip_stats(x[:1], BF16), np.zeros(2, dtype=np.int64)
    x[0, :32, 5] = x[1, :33, 5] = 2.0**40
    assert encode_cells(x, strip, stats, 2, BF16).fallback.tolist() == [False, True]


def test_the_gain_separates_cells_that_vary_more_from_those_that_vary_less() -> None:
    x = strips(6, 1, 256, 64, torch.float32, spread=0.0)
    stats, strip = strip_stats(x, torch.float32), np.zeros(3, dtype=np.int64)
    residual = x[0, :128] - stats.centre[0]
    cells = np.stack([stats.centre[0] + gain * residual for gain in (0.5, 1.0, 2.0)]).astype(np.float32)
    done = encode_cells(cells, strip, stats, 3, torch.float32)
    gains = [(row[0] & 15) - tables.GAIN_BIAS for row in done.slots[0]]
    assert gains[1] in (-1, 0, 1)
    assert gains[0] == pytest.approx(-4, abs=1)
    assert gains[2] == pytest.approx(4, abs=1)
    sizes = np.array([[len(d) for d in row] for row in done.slots]).sum(0)
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_rotating_centre_saves_the_bytes_of_the_part_that_it_predicts() -> None:
    tokens, dim = 256, 64
    rng = np.random.default_rng(7)
    rotation = rotation_of(tokens + 16, dim)
    still = rng.standard_normal(dim) * 4
    level = Stats(rounded(still[None].astype(np.float32), BF16), np.zeros((1, dim), dtype=np.uint8), np.array([True]))
    prediction = prediction_of(level, np.zeros(1, dtype=np.int64), tokens, np.array([16]), rotation).centre
    # By hand, token 2 of the tile, pair 1: position 18 at frequency 10000 ** (-2 / 64).
    angle = 18 * 10_000 ** (-2 / 64)
    a, b = level.centre[0, 1], level.centre[0, 33]
    assert prediction[0, 2, 1] == pytest.approx(a * np.cos(angle) - b * np.sin(angle), abs=3e-3)
    assert prediction[0, 2, 33] == pytest.approx(b * np.cos(angle) + a * np.sin(angle), abs=3e-3)
    x = rounded((prediction + rng.standard_normal((1, tokens, dim))).astype(np.float32), BF16)
    stats = strip_stats(x, BF16, rotation[16:])
    assert stats.rotates.all()
    plain = strip_stats(x, BF16)
    strip, first = np.zeros(1, dtype=np.int64), np.array([16])
    with_rotation = encode_cells(x, strip, stats, 4, BF16, first, rotation)
    without = encode_cells(x, strip, plain, 4, BF16)
    assert with_rotation.errors[4] < 0.3 * without.errors[4]
    y = decode_cells(with_rotation.slots, strip, stats, tokens, BF16, first, rotation)
    assert np.array_equal(squared_error(x, y), with_rotation.errors[4])
    assert not strip_stats(rounded(rng.standard_normal((1, tokens, dim)).astype(np.float32) + 4, BF16), BF16, rotation[16:]).rotates.any()
    with pytest.raises(ValueError, match="rotation=rotation_of"):
        encode_cells(x, strip, stats, 4, BF16, first)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2), st.data())
def test_damage_is_refused_or_decodes_to_finite_numbers(seed: int, p: int, data: st.DataObject) -> None:
    x = strips(seed % 5, 1, 16, 16)
    done, stats, strip = coded(x, depth=4)
    slot = bytearray(done.slots[p][0])
    at = data.draw(st.integers(0, len(slot) - 1))
    slot[at] ^= data.draw(st.integers(1, 255))
    damaged = [list(row) for row in done.slots]
    damaged[p][0] = bytes(slot[: data.draw(st.integers(0, len(slot)))])
    try:
        y = decode_cells(damaged, strip, stats, 16, BF16)
    except ValueError:
        return
    assert np.isfinite(y).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_a_plan_distributes_the_error_by_reverse_water_filling(codes: list[int]) -> None:
    plan = plan_of(np.array([codes], dtype=np.uint8))
    for code, step, kind, start in zip(codes, plan.step[0], plan.kind[0], plan.start[0], strict=True):
        assert step <= plan.step.min() or kind > 4, "a coarser step is only for what would be out of reach"
        if code == 0:
            assert start == NEVER
        elif start < NEVER:
            assert kind == pytest.approx(4 * np.log2(2.0 ** ((code - 128) / 4) / step), abs=0.11)
            assert kind + 4 * FINER[start - 1] >= START_AT
            assert start == 1 or kind + 4 * FINER[start - 2] < START_AT
    assert plan.coded[0, :2].all()
    assert all(plan.coded[0, start - 1] for start in plan.start[0] if start < NEVER), "a bin of many values does not fit in plain bits"


def test_the_symbol_tables_follow_from_the_densities() -> None:
    from scipy.stats import norm

    k = 0 - tables.LEAST  # bins of one deviation
    shares = tables.SHARES[k].astype(float) / 4096
    for magnitude, chance in enumerate(norm.cdf(np.arange(1, 4)) - norm.cdf(np.arange(3))):
        assert shares[2 * magnitude] == shares[2 * magnitude + 1] == pytest.approx(chance, abs=0.01)
    centroid = (norm.pdf(0) - norm.pdf(1)) / (norm.cdf(1) - norm.cdf(0))
    assert tables.POINTS[0, k, 0] / 64 == pytest.approx(centroid, abs=0.015)
    near = (norm.cdf(1.5) - norm.cdf(1)) / (norm.cdf(2) - norm.cdf(1))
    level = tables.SHARES[tables.HALVES + tables.SKEW[0, k, 1], 0] / 4096
    assert level == pytest.approx(near, abs=0.03)
    assert (tables.SHARES.sum(1) == 4096).all()

"""The compiled entropy coder gives the oracle's bytes, values and statistics, also on machines with narrower vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from abkt.codec.codec import Codec
from abkt.codec.entropy import compiled, oracle
from abkt.codec.entropy import stats as numpy_stats
from abkt.codec.entropy.stats import Stats, rotated, rotation_of, rounded, strip_stats
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

STRIPS, TILES = 3, 4
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

pytestmark = pytest.mark.skipif(compiled.load() is None, reason="no g++ here: nothing to compare the oracle with")


def strips(seed: int, tokens: int, dim: int, dtype: torch.dtype) -> np.ndarray:
    """Strips with channels of their own spread and centre; some with heavy tails, values that are large or missing, or no variation."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(3, (STRIPS, tokens, dim)) if seed % 4 == 1 else rng.standard_normal((STRIPS, tokens, dim))
    x = x * np.exp(0.9 * rng.standard_normal((STRIPS, 1, dim))) + 3 * rng.standard_normal((STRIPS, 1, dim))
    if seed % 3 == 0:
        x[0, 1], x[1, 3, 2], x[2, 0, 0] = 1_000, 2.0**15, np.nan
    if seed % 7 == 0:
        x[1] = 0
    return rounded(x.astype(np.float32), dtype)


@pytest.mark.parametrize("seed", range(24))
def test_the_compiled_coder_gives_the_oracles_bytes(seed: int) -> None:
    rng, dtype, levels = np.random.default_rng(seed), DTYPES[seed % 3], seed % 4
    tokens, dim, depth = int(rng.integers(1, 20)) << levels, int(rng.choice([16, 20, 80, 128])), int(rng.integers(1, 7))
    x = strips(seed, TILES * tokens, dim, dtype)
    rotation = rotation_of(TILES * tokens, dim)
    stats = strip_stats(x, dtype, rotation, levels)
    if seed % 2:
        stats = Stats(stats.centre, stats.log_scale, np.array([True, False, True]), levels)
    strip, first = np.repeat(np.arange(STRIPS), TILES), np.tile(np.arange(TILES) * tokens, STRIPS)
    given = (strip, stats, depth, dtype, first, rotation)
    slow = oracle.encode_cells(x.reshape(-1, tokens, dim), *given)
    quick = compiled.encode_cells(x, np.arange(len(strip)) * tokens, tokens, *given)
    assert quick.slots == slow.slots
    assert np.array_equal(quick.fallback, slow.fallback)
    assert np.allclose(quick.errors, slow.errors, rtol=1e-6, atol=1e-12)
    have = rng.integers(0, depth + 1, len(strip)) * ~slow.fallback
    arrived = (slow.slots, strip, stats, tokens, dtype, first, rotation, have)
    assert np.array_equal(oracle.decode_cells(*arrived), compiled.decode_cells(*arrived))


@pytest.mark.parametrize("seed", range(16))
def test_the_compiled_sums_give_numpys_statistics(seed: int) -> None:
    dtype, dim, tokens = DTYPES[seed % 3], (16, 20, 128)[seed % 3], 8 * (1 + 7 * seed)
    x, rotation = strips(seed, tokens, dim, dtype), rotation_of(tokens, dim) if seed % 5 else None
    if rotation is not None:
        x[0] = rounded(rotated(x[0] + 5, rotation).astype(np.float32), dtype)
    levels = (0, 1, 2, 3, np.array([0, 3, 1]))[seed % 5]
    slow, quick = (path.strip_groups(x, dtype, rotation, levels) for path in (numpy_stats, compiled))
    for (here, a), (there, b) in zip(slow, quick, strict=True):
        assert np.array_equal(here, there)
        assert a.levels == b.levels
        for name in ("centre", "log_scale", "rotates"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_the_deviation_is_that_of_the_tokens_that_count() -> None:
    x, skipped = np.random.default_rng(0).standard_normal((2, 40, 16)).astype(np.float32), np.zeros((2, 40), bool)
    skipped[0, ::3] = True
    x[0, ::3] = np.nan
    kept = [x[i][~skipped[i]].astype(np.float64) for i in range(2)]
    assert compiled.deviation_of(x, skipped) == pytest.approx([np.square(k - k.mean(0)).sum() for k in kept])


def test_damage_is_refused_or_decodes_to_finite_numbers() -> None:
    x, strip, rng = strips(2, 32, 16, torch.bfloat16)[:1], np.zeros(1, np.int64), np.random.default_rng(0)
    stats, refused = strip_stats(x, torch.bfloat16), 0
    slots = compiled.encode_cells(x, np.zeros(1, np.int64), 32, strip, stats, 6, torch.bfloat16).slots
    for _ in range(200):
        damaged, p = [list(row) for row in slots], rng.integers(6)
        data = bytearray(damaged[p][0])
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        damaged[p][0] = bytes(data[: rng.integers(1, len(data) + 1)])
        try:
            assert np.isfinite(compiled.decode_cells(damaged, strip, stats, 32, torch.bfloat16)).all()
        except ValueError:
            refused += 1
    assert refused > 100


def test_without_a_compiler_numpy_gives_the_same_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(KVLayout(ModelSpec("m", 1, 2, 32), 20))
    pool.data.copy_(torch.randn(pool.layout.shape, generator=torch.Generator().manual_seed(0)))
    table = list(range(14))
    stream, out = Codec(pool.layout, rope_theta=1e4).encode(pool, table, 200, coder="entropy"), [Pool(pool.layout), Pool(pool.layout)]
    Codec(pool.layout).expand(stream.prefix(9), out[0], table)
    monkeypatch.setattr(compiled, "load", lambda: None)
    alone = Codec(pool.layout, rope_theta=1e4).encode(pool, table, 200, coder="entropy")
    assert bytes(alone.parts.coded.cells.body.numpy()) == bytes(stream.parts.coded.cells.body.numpy())
    assert alone.parts.coded.statistics == stream.parts.coded.statistics
    assert alone.curve.distortion == pytest.approx(stream.curve.distortion, rel=1e-5)
    Codec(pool.layout).expand(stream.prefix(9), out[1], table)
    assert torch.equal(out[0].data, out[1].data)


@pytest.mark.slow
@pytest.mark.parametrize("march", ["haswell", "x86-64"])
def test_machines_with_narrower_vectors_give_the_same_bytes(march: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, strip = strips(2, TILES * 64, 80, torch.bfloat16), np.repeat(np.arange(STRIPS), TILES)
    given = (np.arange(len(strip)) * 64, 64, strip, strip_stats(x, torch.bfloat16), 6, torch.bfloat16)
    native = compiled.encode_cells(x, *given)
    monkeypatch.setattr(compiled, "EXACT", ("-ffp-contract=off", f"-march={march}"))
    compiled.load.cache_clear()
    try:
        assert compiled.encode_cells(x, *given).slots == native.slots
    finally:
        compiled.load.cache_clear()

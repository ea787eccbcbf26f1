"""KV of any amplitude: what every coder leaves as error, and the distortion that a stream states, are finite and true."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abkt.codec.baselines.registry import ALL
from abkt.codec.codec import Codec
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

TOKENS = 176  # a block of sinks, one tile of 128, one of 16, and the newest block
TABLE = [3, 0, 7, 1, 9, 2, 11, 5, 4, 10, 8]
CODERS = ("fixed", "entropy")
GREATEST = {"bfloat16": 3.3e38, "float32": 3.3e38, "float16": 65_504.0}
PARTS = {"all": (slice(None), slice(None)), "V": (slice(None), 1), "K of a layer": (0, 0)}  # of [layers, kinds, ...]


def held(dtype: str, amplitude: float, part: str) -> Pool:
    """Normal KV, a part of which is multiplied by the amplitude; within what the dtype holds."""
    pool = Pool(KVLayout(ModelSpec("small", layers=2, kv_heads=2, head_dim=32, dtype=dtype), blocks=12))
    x = torch.randn(pool.data.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    layers, kinds = PARTS[part]
    x[:, layers, kinds] *= amplitude
    pool.data.copy_(x.clamp(-GREATEST[dtype], GREATEST[dtype]))
    return pool


def tokens_of(pool: Pool) -> torch.Tensor:
    """[layers, kinds, heads, tokens, dim] float64."""
    return pool.data[torch.tensor(TABLE)].permute(1, 2, 3, 0, 4, 5).flatten(3, 4)[..., :TOKENS, :].double()


def relative_error(x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean over (layer, kind) of the squared error over the squared values, which are scaled first so that no square leaves float64."""
    largest = x.abs().amax((2, 3, 4), keepdim=True)
    one, other = x / largest, y / largest
    return float(((one - other).square().sum((2, 3, 4)) / one.square().sum((2, 3, 4))).mean())


def distortion(x: torch.Tensor, y: torch.Tensor, verbatim: torch.Tensor) -> float:
    """The codec's distortion by its definition: over the coded cells, the squared error over the squared deviation from channel means."""
    coded, counted = slice(16, TOKENS - 16), ~verbatim
    largest = x.abs().amax((2, 3, 4), keepdim=True)
    one, other = (x / largest)[..., coded, :], (y / largest)[..., coded, :]
    weight = counted[..., None].double()
    mean = (one * weight).sum(3, keepdim=True) / weight.sum(3, keepdim=True).clamp_min(1)
    error, deviation = (((a * weight).square()).sum((2, 3, 4)) for a in (one - other, one - mean))
    return float(torch.where(deviation > 0, error / deviation, 0.0).mean())


def verbatim_tokens(codec: Codec, stream) -> torch.Tensor:
    """Which coded tokens travel verbatim, [layers, kinds, heads, coded tokens]."""
    cells = codec.cells(TOKENS)
    found = torch.zeros(*cells.shape[:3], TOKENS - 32, dtype=torch.bool)
    for layer, kind, head, tile in (cells.place(int(cell)) for cell in stream.header.verbatim):
        found[layer, kind, head, tile * 128 : tile * 128 + cells.tile_lengths[tile]] = True
    return found


@pytest.mark.parametrize("dtype", GREATEST)
@settings(max_examples=6, deadline=None)
@given(exponent=st.floats(-38, 38), part=st.sampled_from(sorted(PARTS)))
@example(exponent=-6.0, part="all")
@example(exponent=-30.0, part="K of a layer")
@example(exponent=38.0, part="V")
@example(exponent=-38.0, part="all")
def test_error_and_stated_distortion_are_finite_and_true(dtype: str, exponent: float, part: str) -> None:
    pool, plain = held(dtype, 10.0**exponent, part), held(dtype, 1.0, "all")
    x, usual, empty = tokens_of(pool), tokens_of(plain), Pool(pool.layout)
    if not x.abs().amax((2, 3, 4)).min() > 0:
        return  # float16 holds zeros alone
    for coder in CODERS:
        codec = Codec(pool.layout)
        stream = codec.encode(pool, TABLE, TOKENS, coder=coder)
        verbatim = verbatim_tokens(codec, stream)
        for cut in (0, stream.curve.finest // 2, stream.curve.finest):
            stated = codec.expand(stream.prefix(cut), empty, TABLE).distortion
            true = distortion(x, tokens_of(empty), verbatim)
            assert math.isfinite(stated)
            assert stated == pytest.approx(true, rel=0.35, abs=1e-6), (coder, cut)
        assert stream.curve.distortion[-1] <= stream.curve.distortion[0] + 1e-12
        assert relative_error(x, tokens_of(empty)) < 2e-4, coder
    left, refused = {}, []
    for baseline in ALL:
        try:
            message = baseline.encode(pool, TABLE, TOKENS)
        except ValueError as error:
            refused.append(f"{baseline.name}: {error}")
            continue
        baseline.expand(message, empty, TABLE)
        left[baseline.name] = relative_error(x, tokens_of(empty))
        baseline.expand(baseline.encode(plain, TABLE, TOKENS), empty, TABLE)
        as_usual = relative_error(usual, tokens_of(empty))
        assert left[baseline.name] < 1.5 * as_usual + 2e-5, (baseline.name, as_usual)
    assert left["int8"] <= left["int4"] <= left["int2"]
    # A code that sends a number for each vector in float16 may refuse what float16 cannot hold.
    assert not refused or (exponent > 2 and all("float16" in line and "can hold" in line for line in refused)), refused


def test_values_beyond_the_dtype_are_refused_by_the_baselines() -> None:
    pool = held("bfloat16", 1.0, "all")
    pool.data[TABLE[0], 0, 0, 0, 5, 5] = float("inf")
    for baseline in ALL:
        with pytest.raises(ValueError, match="not finite"):
            baseline.encode(pool, TABLE, TOKENS)

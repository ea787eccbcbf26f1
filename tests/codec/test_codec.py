"""The codec end to end, on pools with scattered tables: expanded values, stated distortions, and agreement of all backends."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.codec.codec import Codec
from abkt.codec.fixed import compiled
from abkt.codec.fixed.quantize import MEASURED_WHOLE
from abkt.kv.pool import Pool

SHAPES = [  # tokens, layers, heads, head_dim, block tokens, tile tokens
    (300, 2, 2, 64, 16, 128),
    (77, 1, 1, 64, 16, 128),
    (77, 1, 1, 64, 4, 12),
    (130, 1, 3, 80, 16, 64),
    (145, 1, 2, 96, 8, 32),
    (200, 1, 2, 128, 16, 48),
    (64, 2, 1, 256, 32, 32),
    (60, 1, 2, 16, 3, 9),
    (23, 1, 2, 32, 1, 5),
    (90, 1, 2, 40, 16, 32),
    (16, 1, 1, 32, 16, 128),
    (5, 1, 1, 32, 16, 128),
    (32, 1, 1, 32, 16, 128),
    (33, 1, 1, 32, 16, 128),
]
BACKENDS = ["oracle", "compiled"]


@pytest.fixture(scope="session", autouse=True)
def compiler():
    if compiled.load() is None:
        pytest.skip("no g++ here: nothing to compare the oracle with")


def expanded(codec, stream, cut, layout, table):
    pool = Pool(layout)
    return codec.expand(stream.prefix(cut), pool, table), pool


def whole(pool, table, tokens):
    """[layers, 2, heads, tokens, dim] float64."""
    layers = [torch.stack(pool.read(table, layer, tokens)) for layer in range(pool.layout.model.layers)]
    return torch.stack(layers).double()


def measured_distortion(source, result, first, last):
    """The distortion of tokens first .. last: mean over (layer, K|V) of squared error over squared deviation from channel means."""
    x, y = source[..., first:last, :], result[..., first:last, :]
    error = (x - y).square().sum((2, 3, 4))
    return float((error / (x - x.mean(3, keepdim=True)).square().sum((2, 3, 4))).mean())


@pytest.mark.parametrize("order", ["uniform", "slope"])
@pytest.mark.parametrize(("tokens", "layers", "heads", "dim", "block_tokens", "tile"), SHAPES)
def test_every_cut_has_the_distortion_that_the_stream_states(
    layout_of, filled_pool, table_of, tokens, layers, heads, dim, block_tokens, tile, order
):
    layout = layout_of(layers, heads, dim, blocks=-(-tokens // block_tokens) + 5, block_tokens=block_tokens)
    pool, table, target = filled_pool(layout), table_of(layout, tokens), table_of(layout, tokens, seed=3)
    codec = Codec(layout, tile_tokens=tile)
    stream = codec.encode(pool, table, tokens, order=order)
    assert stream.ends == tuple(int(b) for b in stream.curve.bytes)
    assert list(stream.ends) == sorted(set(stream.ends))
    assert len(stream.ends) <= 65
    source, first = whole(pool, table, tokens), min(tokens, block_tokens)
    last = first + max(0, -(-tokens // block_tokens) - 2) * block_tokens
    for cut in range(0, len(stream.ends), max(1, len(stream.ends) // 6)):
        result, out = expanded(codec, stream, cut, layout, target)
        decoded = whole(out, target, tokens)
        assert torch.equal(decoded[..., :first, :], source[..., :first, :]), "the sinks travel verbatim"
        assert torch.equal(decoded[..., last:, :], source[..., last:, :]), "the newest tokens travel verbatim"
        assert tokens - last <= block_tokens
        claimed = stream.curve.distortion[cut]
        assert result.cut == cut
        assert result.tokens == tokens
        assert result.distortion == pytest.approx(claimed, rel=1e-6)
        if last > first + 1:
            within = 0.1 if tile >= MEASURED_WHOLE else 1e-4  # few cells, and only an eighth of each is measured
            assert measured_distortion(source, decoded, first, last) == pytest.approx(claimed, rel=within, abs=1e-12)
        else:
            assert (first < last) or claimed == 0
        untouched = [b for b in range(layout.blocks) if b not in target]
        assert not out.data[untouched].any(), "a foreign block was written"


@pytest.mark.parametrize("norms", [0.0, 1.5], ids=["like tokens", "tokens of very different norms"])
def test_an_eighth_of_the_tokens_estimates_the_error_of_all(layout_of, filled_pool, table_of, norms):
    """The estimate over 96 cells is within 3 %, even where a few tokens of V have most of the error, which a scaled eighth would miss."""
    layout = layout_of(layers=4, heads=2, dim=64, blocks=100)
    pool, table, tokens = filled_pool(layout), table_of(layout, 800), 800
    factor = (norms * torch.randn(100, 1, 1, 16, 1, generator=torch.Generator().manual_seed(1))).exp()
    pool.data[:, :, 1] *= factor.to(pool.dtype)
    codec = Codec(layout)
    stream = codec.encode(pool, table, tokens, order="uniform")
    source = whole(pool, table, tokens)
    for cut, claimed in enumerate(stream.curve.distortion):
        _, out = expanded(codec, stream, cut, layout, table)
        assert measured_distortion(source, whole(out, table, tokens), 16, 784) == pytest.approx(claimed, rel=0.03), cut


@pytest.mark.parametrize("depth", [4, 6])
def test_a_shallow_encode_equals_a_prefix_of_a_deep_one(layout_of, filled_pool, table_of, depth):
    layout = layout_of(dim=64)
    pool, table = filled_pool(layout), table_of(layout, 300)
    codec = Codec(layout)
    deep, shallow = codec.encode(pool, table, 300, order="uniform"), codec.encode(pool, table, 300, depth_bits=depth, order="uniform")
    assert shallow.curve.bits == deep.curve.bits[: len(shallow.ends)]
    assert shallow.curve.distortion == pytest.approx(deep.curve.distortion[: len(shallow.ends)])
    for cut in range(len(shallow.ends)):
        (_, a), (_, b) = (expanded(codec, stream, cut, layout, table) for stream in (deep, shallow))
        assert torch.equal(a.data, b.data)


def test_both_orders_end_in_the_same_values(layout_of, filled_pool, table_of):
    layout = layout_of(dim=64)
    pool, table, codec = filled_pool(layout), table_of(layout, 200), Codec(layout)
    uniform, slope = (codec.encode(pool, table, 200, order=order) for order in ("uniform", "slope"))
    (_, a), (_, b) = (expanded(codec, stream, len(stream.ends) - 1, layout, table) for stream in (uniform, slope))
    assert torch.equal(a.data, b.data)
    assert uniform.slope == slope.slope
    assert uniform.uniform == slope.uniform


@given(st.integers(0, 10**6), st.integers(33, 200), st.sampled_from(["bfloat16", "float32"]))
@settings(max_examples=25, deadline=None)
def test_the_slope_order_is_never_worse_than_uniform(layout_of, filled_pool, table_of, seed, tokens, dtype):
    layout = layout_of(dim=16, block_tokens=8, dtype=dtype, blocks=40)
    stream = Codec(layout, tile_tokens=16).encode(filled_pool(layout, seed), table_of(layout, tokens, seed), tokens)
    slope, uniform = stream.slope, stream.uniform
    # The slope order has more bands: a longer table of cuts, and checksums padded once more a band.
    header = slope.bytes[0] - uniform.bytes[0] + 12 * len(slope.bytes)
    for size, distortion in zip(uniform.bytes, uniform.distortion, strict=True):
        between = np.interp(size + header, slope.bytes, slope.distortion)
        assert between <= distortion * 1.01 + 1e-12
    widest = max(np.diff(slope.bytes), default=0)
    for size, distortion in zip(uniform.bytes, uniform.distortion, strict=True):
        assert slope.distortion[slope.cut_within(size + header + widest)] <= distortion * 1.01 + 1e-12


def test_weights_move_bytes_to_the_heaviest_cells(layout_of, filled_pool, table_of):
    layout = layout_of(dim=64)
    pool, table, codec = filled_pool(layout), table_of(layout, 300), Codec(layout, tile_tokens=64)
    weights = torch.ones(2, 2, 2, 5)
    weights[:, :, 0] = 50
    flat, heavy = (codec.encode(pool, table, 300, weights=w) for w in (None, weights))
    errors = []
    for stream in (flat, heavy):
        _, out = expanded(codec, stream, stream.slope.cut_within(0.4 * stream.ends[-1]), layout, table)
        errors.append((whole(out, table, 300) - whole(pool, table, 300)).square().sum((0, 1, 3, 4)))
    assert errors[1][0] < 0.5 * errors[0][0]
    assert errors[1][1] > errors[0][1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_cell_that_cannot_be_coded_travels_verbatim(layout_of, filled_pool, table_of, backend, bad):
    layout = layout_of(dim=32)
    pool, table, codec = filled_pool(layout), table_of(layout, 200), Codec(layout, backend, tile_tokens=32)
    pool.data[table[4], 1, 0, 1, 7, 5] = bad  # block 4 is coded block 3: tile 1
    stream = codec.encode(pool, table, 200)
    assert stream.verbatim_cells == 1
    result, out = expanded(codec, stream, 0, layout, table)
    assert result.verbatim_cells == 1
    verbatim = [table[3], table[4]]
    assert torch.equal(out.data[verbatim, 1, 0, 1].view(torch.int16), pool.data[verbatim, 1, 0, 1].view(torch.int16))
    assert not torch.equal(out.data[verbatim, 1, 0, 0], pool.data[verbatim, 1, 0, 0]), "the other head was coded"
    result, out = expanded(codec, stream, len(stream.ends) - 1, layout, table)
    assert result.distortion < 1e-3
    assert torch.equal(out.data[verbatim, 1, 0, 1].view(torch.int16), pool.data[verbatim, 1, 0, 1].view(torch.int16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_and_empty_kv_is_lossless_at_zero_bits(layout_of, filled_pool, table_of, backend):
    layout = layout_of(dim=16)
    pool, table, codec = Pool(layout), table_of(layout, 100), Codec(layout, backend)
    pool.data[..., 3] = 0.375
    pool.data[:, :, 1] = -2.5
    stream = codec.encode(pool, table, 100)
    assert stream.slope.distortion == (0.0,), "nothing is left to remove, so the slope order has no band"
    assert stream.uniform.distortion == (0,) * 7
    _, out = expanded(codec, stream, 0, layout, table)
    assert torch.equal(whole(out, table, 100), whole(pool, table, 100))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_key_bias_of_100_times_the_spread_does_not_change_the_other_channels_error(layout_of, table_of, backend):
    """In Qwen2.5's keys one channel is far from 0. The others keep the error they have without it; the biased one has that of bfloat16."""
    layout = layout_of(layers=1, heads=1, dim=32)
    plain, biased = Pool(layout), Pool(layout)
    plain.data.copy_(torch.randn(layout.shape, generator=torch.Generator().manual_seed(2)))
    biased.data.copy_(plain.data)
    biased.data[:, 0, 0, 0, :, 9] += 100
    table, codec = table_of(layout, 300), Codec(layout, backend)
    for cut in range(7):
        a, b = (expanded(codec, codec.encode(p, table, 300, order="uniform"), cut, layout, table)[1] for p in (plain, biased))
        others = [c for c in range(32) if c != 9]
        assert torch.equal(a.data[..., others], b.data[..., others])
    assert (whole(b, table, 300) - whole(biased, table, 300))[0, 0, :, :, 9].abs().max() <= 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_part_of_v_does_not_raise_the_error(layout_of, filled_pool, table_of, backend):
    """Channels of V at 10 times their spread from 0 are coded as well as centred ones."""
    layout = layout_of(dim=32, dtype="float32")
    plain, moved = filled_pool(layout), filled_pool(layout)
    spread = plain.data[:, :, 1].std((0, 3), keepdim=True)
    moved.data[:, :, 1] += 10 * spread * torch.randn(spread.shape, generator=torch.Generator().manual_seed(4))
    table, codec = table_of(layout, 300), Codec(layout, backend)
    a, b = (codec.encode(p, table, 300, order="uniform").uniform.distortion for p in (plain, moved))
    assert b == pytest.approx(a, rel=0.02)
    assert a[0] == pytest.approx(1, rel=0.1), "at 0 bits all is its mean"


def test_kv_is_coded_when_the_first_tile_has_no_mean(layout_of, filled_pool, table_of):
    layout = layout_of(dim=16)
    pool, table, codec = filled_pool(layout), table_of(layout, 200), Codec(layout, tile_tokens=32)
    pool.data[table[1], :, 1, :, 3, 5] = float("inf")
    stream = codec.encode(pool, table, 200)
    assert stream.verbatim_cells == 2 * 2, "V of tile 0 of every layer and head"
    _, out = expanded(codec, stream, len(stream.ends) - 1, layout, table)
    decoded, source = whole(out, table, 200)[..., 48:, :], whole(pool, table, 200)[..., 48:, :]
    assert (decoded - source).abs().max() < 0.02 * source.abs().max()


def test_a_longer_prefix_refines_in_place(layout_of, filled_pool, table_of):
    layout = layout_of(dim=64)
    pool, table, codec = filled_pool(layout), table_of(layout, 250), Codec(layout)
    stream = codec.encode(pool, table, 250)
    out, source, last = Pool(layout), whole(pool, table, 250), np.inf
    for cut in (0, len(stream.ends) // 2, len(stream.ends) - 1):
        codec.expand(stream.prefix(cut), out, table)
        error = float((whole(out, table, 250) - source).square().sum())
        assert error < last
        last = error


def test_wrong_arguments_are_refused(layout_of, filled_pool):
    layout = layout_of()
    pool, codec = filled_pool(layout), Codec(layout)
    for call, message in (
        (lambda: codec.encode(pool, [0, 1], 33), "cannot hold 33 tokens; 3 blocks are needed"),
        (lambda: codec.encode(pool, [0, 0, 1], 33), "twice"),
        (lambda: codec.encode(pool, [0, 1, 24], 33), "block 24"),
        (lambda: codec.encode(pool, [0], 0), "at least 1"),
        (lambda: codec.encode(pool, [0], 5, depth_bits=5), "5 bits; one of 1, 2, 3, 4, 6, 8"),
        (lambda: codec.encode(pool, [0], 5, order="random"), "order random"),
        (lambda: codec.encode(Pool(layout_of(dim=64)), [0], 5), r"\(24, 2, 2, 2, 16, 64\).*\(24, 2, 2, 2, 16, 32\)"),
        (lambda: codec.encode(Pool(layout_of(dtype="float16")), [0], 5), "float16.*bfloat16"),
        (lambda: Codec(layout, tile_tokens=24), "24 tokens is not a whole number of blocks of 16"),
        (lambda: Codec(layout_of(dtype="float8_e4m3fn")), "float8_e4m3fn cannot be coded"),
        (lambda: Codec(layout_of(dim=40), "compiled").describe(), "multiple of 16, not 40"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

"""The entropy coder end to end: cuts, stated distortions, fallbacks and bytes, on pools with scattered tables."""

import numpy as np
import pytest
import torch

from abkt.codec.calibration import Calibration
from abkt.codec.codec import Codec
from abkt.codec.entropy.coder import EntropyCoder
from abkt.codec.entropy.stats import rotation_of
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

SHAPES = [  # tokens, layers, heads, head_dim, kinds, block tokens, tile, dtype
    (300, 2, 2, 64, 2, 16, 128, "bfloat16"),
    (77, 1, 1, 80, 2, 4, 12, "float16"),
    (130, 1, 1, 256, 2, 16, 64, "bfloat16"),
    (90, 2, 1, 576, 1, 16, 32, "bfloat16"),
    (60, 1, 2, 16, 2, 3, 9, "float32"),
    (16, 1, 1, 32, 2, 16, 128, "bfloat16"),
    (5, 1, 1, 32, 2, 16, 128, "bfloat16"),
]


def filled(tokens, layers, heads, dim, kinds, block_tokens, dtype, seed=0):
    layout = KVLayout(ModelSpec("m", layers, heads, dim, dtype=dtype, kv_kinds=kinds), -(-tokens // block_tokens) + 4, block_tokens)
    pool, rng = Pool(layout), np.random.default_rng(seed)
    spread = np.exp(rng.standard_normal((1, layers, kinds, heads, 1, dim)))
    x = rng.standard_normal(layout.shape) * spread + 3 * rng.standard_normal(spread.shape)
    pool.data.copy_(torch.from_numpy(x))
    return pool, torch.randperm(layout.blocks, generator=torch.Generator().manual_seed(seed))[: layout.blocks_for(tokens)].tolist()


def held(pool, table, tokens):
    return torch.stack([torch.stack(pool.read(table, layer, tokens)) for layer in range(pool.layout.model.layers)]).double()


@pytest.mark.parametrize("order", ["slope", "uniform"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_cut_has_the_distortion_that_the_stream_states(shape, order):
    tokens, layers, heads, dim, kinds, block_tokens, tile, dtype = shape
    pool, table = filled(tokens, layers, heads, dim, kinds, block_tokens, dtype)
    codec = Codec(pool.layout, tile_tokens=tile, rope_theta=10_000.0)
    stream = codec.encode(pool, table, tokens, order=order, coder="entropy")
    source, cells = held(pool, table, tokens), codec.cells(tokens)
    first, last = cells.sink_tokens, tokens - cells.newest_tokens
    every = range(len(stream.ends)) if order == "uniform" else range(0, len(stream.ends), 9)
    for cut in every:
        out = Pool(pool.layout)
        done = codec.expand(stream.prefix(cut), out, table)
        result = held(out, table, tokens)
        assert torch.equal(result[..., :first, :], source[..., :first, :])
        assert torch.equal(result[..., last:, :], source[..., last:, :])
        if last > first:
            error = (source - result)[..., first:last, :].square().sum((2, 3, 4))
            middle = source[..., first:last, :]
            spread = (middle - middle.mean(3, keepdim=True)).square().sum((2, 3, 4))
            assert done.distortion == pytest.approx(float((error / spread).mean()), rel=1e-4, abs=1e-7)
    assert stream.curve.distortion[-1] < 2e-3


def test_the_entropy_coder_takes_fewer_bytes_than_the_fixed_coder_at_the_same_error():
    pool, table = filled(1100, 2, 2, 64, 2, 16, "bfloat16")
    codec = Codec(pool.layout)
    fixed, entropy = (codec.encode(pool, table, 1100, coder=coder) for coder in ("fixed", "entropy"))
    for cut, distortion in enumerate(fixed.curve.distortion):
        if 0.002 < distortion < 0.2:
            there = next(i for i, d in enumerate(entropy.curve.distortion) if d <= distortion)
            assert entropy.ends[there] < 0.9 * fixed.ends[cut]


def test_a_cell_that_cannot_be_coded_travels_verbatim_and_one_with_an_outlier_is_coded(filled_pool, layout_of, table_of):
    layout = layout_of(layers=1, heads=2, dim=32)
    pool, table = filled_pool(layout), table_of(layout, 300)
    pool.data[table[3], 0, 0, 1, 2, 5] = float("nan")
    pool.data[table[3], 0, 1, 0, 2, 5] = 1e5
    codec = Codec(layout, tile_tokens=64)
    stream = codec.encode(pool, table, 300, depth_bits=4, coder="entropy")
    assert stream.verbatim_cells == 1
    out = Pool(layout)
    assert codec.expand(stream.prefix(len(stream.ends) - 1), out, table).verbatim_cells == 1
    for block in table[1:5]:  # the first tile
        assert torch.equal(out.data[block, 0, 0, 1].view(torch.int16), pool.data[block, 0, 0, 1].view(torch.int16))
    assert out.data[table[3], 0, 1, 0, 2, 5] == pool.data[table[3], 0, 1, 0, 2, 5]
    x, y = (p.data[table[5:-1], 0].double() for p in (pool, out))  # in the other tiles that one value must not widen the steps
    assert float((x - y).square().mean()) < 0.01 * float(x.var())


def test_rotating_keys_take_fewer_bytes_if_the_rotation_base_is_known():
    tokens, dim, theta = 1100, 64, 50_000.0
    pool, table = filled(tokens, 1, 1, dim, 2, 16, "bfloat16")
    rotation = torch.from_numpy(rotation_of(tokens, dim, theta).astype(np.float64))
    level = 4 * torch.randn(dim, generator=torch.Generator().manual_seed(3)).double()
    a, b = level[:32], level[32:]
    rotated = torch.cat((a * rotation[:, 0] - b * rotation[:, 1], b * rotation[:, 0] + a * rotation[:, 1]), 1)
    noise = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(4)).double()
    pool.write(table, 0, 0, (rotated + noise)[None].bfloat16(), torch.ones_like(noise)[None].bfloat16())
    sizes = {}
    alone = Calibration("m", 1.0, np.ones((1, 2, 1)), np.zeros((1, 2, 1), dtype=np.uint8))  # no differences: they help slow channels too
    for base in (None, 10_000.0, theta):
        codec = Codec(pool.layout, rope_theta=base, calibration=alone)
        stream = codec.encode(pool, table, tokens, coder="entropy")
        out, other = Pool(pool.layout), Codec(pool.layout)  # the stream itself states how K rotates
        cut = next(i for i, d in enumerate(stream.curve.distortion) if d < 0.005)
        other.expand(stream.prefix(cut), out, table)
        error = (held(out, table, tokens) - held(pool, table, tokens)).square().mean()
        assert float(error) < 0.2
        sizes[base] = stream.ends[cut] - stream.ends[0]
    assert sizes[theta] < 0.85 * sizes[None]
    assert sizes[theta] < sizes[10_000.0] <= 1.05 * sizes[None]


def test_damage_is_reported_with_its_cell_and_an_unknown_coder_is_refused():
    pool, table = filled(200, 1, 2, 32, 2, 16, "bfloat16")
    codec = Codec(pool.layout)
    stream = codec.encode(pool, table, 200, coder="entropy")
    good, out = bytearray(stream.prefix(3)), Pool(pool.layout)
    good[-5] ^= 4
    with pytest.raises(ValueError, match=r"damaged in cell \(layer 0, head"):
        codec.expand(good, out, table)
    assert not out.data.any()
    with pytest.raises(ValueError, match="coder huffman is unknown; one of fixed, entropy"):
        codec.encode(pool, table, 200, coder="huffman")


def test_constant_kv_costs_no_passes():
    pool, table = filled(100, 1, 1, 32, 2, 16, "bfloat16")
    pool.data.copy_(pool.data[:1, :, :, :, :1].expand_as(pool.data).clone())
    codec, out = Codec(pool.layout), Pool(pool.layout)
    stream = codec.encode(pool, table, 100, coder="entropy")
    assert len(stream.ends) == 1
    codec.expand(stream.prefix(0), out, table)
    assert torch.equal(held(out, table, 100), held(pool, table, 100))


def test_a_pool_that_is_not_on_the_cpu_is_refused():
    data = torch.empty(4, 1, 2, 1, 16, 16, device="meta")
    with pytest.raises(ValueError, match="runs on the CPU, and this pool is on meta: take coder=fixed"):
        EntropyCoder(None).encode(data, [1], None)
    with pytest.raises(ValueError, match="take coder=fixed, or a pool on the CPU"):
        EntropyCoder(None).expand(None, data, [1], None)

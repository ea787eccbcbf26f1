"""The published baselines against plain numpy: the values that they give back, the bytes that they take, and the input that they refuse."""

from math import erf

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.codec.baselines import ALL, CacheGenCodec, Fp8, Kivi, Layers, LynxCodec, Tiers, Uniform
from abkt.codec.baselines.base import FRAME_BYTES
from abkt.codec.bits import pack, unpack
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

TOKENS, LAYERS, HEADS, DIM = 300, 4, 2, 64
VALUES = LAYERS * 2 * HEADS * TOKENS * DIM
ROWS = VALUES // DIM  # one row is a token of a head


@pytest.fixture(scope="module")
def sample(layout_of, filled_pool, table_of):
    layout = layout_of(LAYERS, HEADS, DIM, dtype="float32")
    return filled_pool(layout), table_of(layout, TOKENS)


def held(pool, table, tokens=TOKENS):
    """The pool's KV as [layers, kinds, heads, tokens, dim]."""
    return np.stack([torch.stack(pool.read(table, layer, tokens)).float().numpy() for layer in range(pool.layout.model.layers)])


def passed(codec, sample, seed=5):
    """Values before and after, and the message's bytes. The receiving pool uses other blocks; its remaining blocks stay unchanged."""
    pool, table = sample
    data = codec.encode(pool, table, TOKENS)
    other = Pool(pool.layout)
    other.data.fill_(7)
    target = torch.randperm(pool.layout.blocks, generator=torch.Generator().manual_seed(seed))[: len(table)].tolist()
    codec.expand(data, other, target)
    foreign = [block for block in range(pool.layout.blocks) if block not in target]
    assert (other.data[foreign] == 7).all()
    return held(pool, table), held(other, target), len(data) - FRAME_BYTES


def by_rows(x, bits):
    """Asymmetric min/max quantisation along the last axis with float16 scale and zero, in numpy."""
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    scale, zero = ((high - low) / (2**bits - 1)).astype(np.float16).astype(np.float32), low.astype(np.float16).astype(np.float32)
    codes = np.clip(np.round((x - zero) / np.where(scale > 0, scale, 1)), 0, 2**bits - 1)
    return codes * scale + zero, codes, scale, zero


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_uniform_quantises_each_token_by_its_min_and_max(sample, bits):
    x, y, size = passed(Uniform("u", bits), sample)
    np.testing.assert_allclose(y, by_rows(x, bits)[0], rtol=1e-6, atol=1e-6)
    assert size == VALUES * bits // 8 + ROWS * 4


@pytest.mark.parametrize("bits", [2, 4])
def test_kivi_quantises_k_by_channel_and_v_by_token_and_keeps_the_newest_tokens(sample, bits):
    x, y, size = passed(Kivi("k", bits), sample)
    keys, values = 256, 172  # 300 tokens less 300 % 128, and less 128
    np.testing.assert_array_equal(y[:, 0, :, keys:], x[:, 0, :, keys:])
    np.testing.assert_array_equal(y[:, 1, :, values:], x[:, 1, :, values:])
    k = x[:, 0, :, :keys].reshape(LAYERS, HEADS, 8, 32, DIM).swapaxes(-1, -2)
    expected = by_rows(k, bits)[0].swapaxes(-1, -2).reshape(LAYERS, HEADS, keys, DIM)
    np.testing.assert_allclose(y[:, 0, :, :keys], expected, rtol=1e-6, atol=1e-6)
    v = x[:, 1, :, :values].reshape(LAYERS, HEADS, values, 2, 32)
    np.testing.assert_allclose(y[:, 1, :, :values], by_rows(v, bits)[0].reshape(LAYERS, HEADS, values, DIM), rtol=1e-6, atol=1e-6)
    coded, raw = (keys + values) * LAYERS * HEADS * DIM, (2 * TOKENS - keys - values) * LAYERS * HEADS * DIM
    assert size == coded * bits // 8 + coded // 32 * 4 + raw * 4


def test_kivi_keeps_a_short_prompt_lossless(layout_of, filled_pool, table_of):
    layout = layout_of(1, 1, 40, dtype="bfloat16")
    pool, table = filled_pool(layout), table_of(layout, 127)
    out = Pool(layout)
    out.data[table] = pool.data[table]  # the last place of the last block is not of the prompt
    Kivi("k", 2).expand(Kivi("k", 2).encode(pool, table, 127), out, table)
    assert torch.equal(out.data[table], pool.data[table])


def test_cachegen_is_within_half_a_bin_of_each_delta(sample):
    codec = CacheGenCodec()
    x, y, _ = passed(codec, sample)
    anchors = by_rows(x[..., ::10, :], 8)[0]
    np.testing.assert_allclose(y[..., ::10, :], anchors, rtol=1e-6, atol=1e-6)
    delta = x - anchors.repeat(10, axis=3)[..., :TOKENS, :]
    rest = np.arange(TOKENS) % 10 != 0
    for layer, kind in np.ndindex(LAYERS, 2):
        d = delta[layer, kind][:, rest]
        bin_width = max(codec.factor(layer, LAYERS, kind) * np.sqrt(np.mean(d**2)), np.abs(d).max() / 127)
        assert np.abs((y - x)[layer, kind][:, rest]).max() <= bin_width / 2 * 1.001
        assert np.abs((y - x)[layer, kind][:, rest]).max() > bin_width / 4  # and it does round


def test_cachegen_takes_about_the_entropy_of_its_bins_on_noise(layout_of, table_of):
    layout = layout_of(1, 1, DIM, dtype="float32", blocks=200)
    tokens, pool = 3000, Pool(layout)
    pool.data.copy_(torch.randn(layout.shape, generator=torch.Generator().manual_seed(1)))
    table = table_of(layout, tokens)
    size = len(CacheGenCodec().encode(pool, table, tokens)) - FRAME_BYTES
    anchors = tokens // 10 * (DIM + 4) * 2
    # A tenth of the tokens are anchors, nearly lossless. The rest are deltas, which take the bits of N(0, s^2) in bins of f s.
    entropy = 0.0
    for factor in (0.25, 0.5):
        edges = (np.arange(-200, 201) - 0.5) * factor
        p = np.diff([0.5 * (1 + erf(edge / 2**0.5)) for edge in edges])
        entropy += -(p[p > 0] * np.log2(p[p > 0])).sum() * tokens * 0.9 * DIM / 8
    assert entropy < size - anchors < 1.05 * entropy


def test_a_coarser_cachegen_level_takes_fewer_bytes_and_has_more_error(sample):
    sizes, errors = [], []
    for coarseness in (0.5, 1.0, 2.0):
        x, y, size = passed(CacheGenCodec(coarseness=coarseness), sample)
        sizes.append(size)
        errors.append(np.mean((x - y) ** 2))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_fp8_keeps_three_mantissa_bits(sample):
    x, y, size = passed(Fp8(), sample)
    greatest = np.abs(x).max((-2, -1), keepdims=True)
    subnormal = greatest / 448 * 2.0**-10  # half of the least step, 2**-9
    assert (np.abs(x - y) <= np.maximum(np.abs(x) / 16, subnormal) * 1.0001).all()
    assert size == VALUES + LAYERS * 2 * HEADS * 4


def test_lynx_sends_int8_in_two_halves(sample):
    x, y, size = passed(LynxCodec("l8", refined=True), sample)
    np.testing.assert_allclose(y, by_rows(x, 8)[0], rtol=1e-6, atol=1e-6)
    assert size == VALUES + ROWS * 4
    x, y, size = passed(LynxCodec("l4", refined=False), sample)
    _, codes, scale, zero = by_rows(x, 8)
    np.testing.assert_allclose(y, (codes // 16 * 16 + 7.5) * scale + zero, rtol=1e-6, atol=1e-5)
    assert size == VALUES // 2 + ROWS * 4


def test_tiers_keep_the_tokens_with_the_highest_scores(sample):
    scores = np.random.default_rng(0).permutation(TOKENS).astype(float)
    x, y, size = passed(Tiers("t", scores=tuple(scores)), sample)
    rank = (-scores).argsort().argsort()
    top, middle, low = rank < 60, (rank >= 60) & (rank < 150), rank >= 150
    np.testing.assert_array_equal(y[..., top, :], x[..., top, :].astype(np.float16))
    np.testing.assert_allclose(y[..., middle, :], by_rows(x[..., middle, :], 8)[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(y[..., low, :], by_rows(x[..., low, :], 4)[0], rtol=1e-6, atol=1e-6)
    per_token = LAYERS * 2 * HEADS * DIM
    assert size == TOKENS // 4 + per_token * (60 * 2 + 90 + 75) + 240 * LAYERS * 2 * HEADS * 4


def test_random_tiers_depend_on_the_seed_and_not_on_scores(sample):
    pool, table = sample
    first, again, other = (Tiers("r", seed=s).encode(pool, table, TOKENS) for s in (1, 1, 2))
    assert first == again != other
    with pytest.raises(ValueError, match="scores"):
        Tiers("t", scores=(1.0,)).encode(pool, table, TOKENS)


def test_layers_are_ranked_by_key_norm(layout_of):
    layout = layout_of(3, 1, 32, dtype="float32", blocks=4)
    pool = Pool(layout)
    pool.data.copy_(torch.randn(layout.shape, generator=torch.Generator().manual_seed(0)))
    pool.data[:, 0, 0] *= 3
    pool.data[:, 1, 0] *= 9
    x = held(pool, [2, 0], 32)
    out = Pool(layout)
    data = Layers().encode(pool, [2, 0], 32)
    Layers().expand(data, out, [1, 3])
    for layer, bits in enumerate((4, 8, 2)):
        np.testing.assert_allclose(held(out, [1, 3], 32)[layer], by_rows(x[layer], bits)[0], rtol=1e-6, atol=1e-6)
    assert len(data) - FRAME_BYTES == 3 + 2 * 32 * (32 * (4 + 8 + 2) // 8 + 3 * 4)


@pytest.mark.parametrize("codec", ALL, ids=lambda c: c.name)
@pytest.mark.parametrize("tokens", [0, 1, 9, 10, 11, 31, 129, 161])
@pytest.mark.parametrize("spec", [("bfloat16", 2, 40), ("float16", 1, 96)], ids=["gqa", "mla"])
def test_every_baseline_takes_any_length_dtype_and_latent_kv(codec, tokens, spec):
    dtype, kinds, dim = spec
    layout = KVLayout(ModelSpec("m", layers=2, kv_heads=2, head_dim=dim, dtype=dtype, kv_kinds=kinds), 14, 12)
    pool, out = Pool(layout), Pool(layout)
    pool.data.copy_(torch.randn(layout.shape, generator=torch.Generator().manual_seed(tokens)))
    table = list(range(layout.blocks_for(tokens)))
    codec.expand(codec.encode(pool, table, tokens), out, table)
    if tokens:
        x, y = held(pool, table, tokens), held(out, table, tokens)
        limit = {"int2": 0.3, "kivi2": 0.3, "layer-norm": 0.1, "cachegen": 0.1, "turbo2": 0.3, "turbo3": 0.1, "hadamard3": 0.1}.get(
            codec.name, 0.02
        )
        assert np.mean((x - y) ** 2) <= limit * np.mean((x - x.mean()) ** 2)


@pytest.mark.parametrize("codec", ALL, ids=lambda c: c.name)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_damage_is_refused_and_writes_nothing(sample, codec, data):
    pool, table = sample
    message = bytearray(codec.encode(pool, table[:2], 20))
    at = data.draw(st.integers(0, len(message) - 1))
    if data.draw(st.booleans()):
        message[at] ^= data.draw(st.integers(1, 255))
    else:
        del message[at:]
    out = Pool(pool.layout)
    with pytest.raises(ValueError, match="message"):
        codec.expand(bytes(message), out, table[:2])
    assert not out.data.any()


@pytest.mark.parametrize("codec", ALL, ids=lambda c: c.name)
def test_a_message_for_another_codec_or_layout_is_refused(sample, codec, layout_of):
    pool, table = sample
    message = codec.encode(pool, table, TOKENS)
    with pytest.raises(ValueError, match="layout"):
        codec.expand(message, Pool(layout_of(LAYERS, HEADS, 32, dtype="float32")), table)
    with pytest.raises(ValueError, match="is not for"):
        Uniform("another", 4).expand(message, Pool(pool.layout), table)
    with pytest.raises(ValueError, match="table"):
        codec.expand(message, Pool(pool.layout), table[:3])


@pytest.mark.parametrize("codec", ALL, ids=lambda c: c.name)
def test_kv_without_a_finite_range_is_refused(layout_of, codec):
    layout = layout_of(1, 1, 32, dtype="float32", blocks=20)
    pool = Pool(layout)
    pool.data[0, 0, 0, 0, 0, 3] = float("nan")
    if isinstance(codec, Kivi):
        codec.encode(pool, [0], 16)  # all of it is in the residual, in the pool's dtype
    tokens = 300
    with pytest.raises(ValueError, match="finite"):
        codec.encode(pool, list(range(19)), tokens)


@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=70))
def test_packed_codes_unpack_unchanged(bits, codes):
    x = torch.tensor(codes, dtype=torch.uint8) & (2**bits - 1)
    data = pack(x, bits)
    assert len(data) == -(-len(codes) * bits // 8)
    assert torch.equal(unpack(data, bits, (len(codes),)), x)

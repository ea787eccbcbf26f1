"""Lossless messages of whole sequences: every bit pattern is restored, the stated size is right, and damage is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.codec.lossless import stream as lossless_stream
from abkt.codec.lossless.entropy import decode, encode
from abkt.codec.lossless.stream import HEADER_BYTES, expand
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

DTYPES = ["bfloat16", "float16", "float32", "float8_e4m3fn"]
INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def any_bits(layout: KVLayout, seed: int = 0) -> Pool:
    """A pool of normal values in which every tenth value is a random bit pattern."""
    rng = np.random.default_rng(seed)
    pool = Pool(layout)
    pool.data.copy_(torch.from_numpy(rng.standard_normal(layout.shape) * np.exp(rng.standard_normal(layout.shape[-1]))))
    bits = pool.data.view(INTEGER[pool.data.element_size()])
    width = 8 * pool.data.element_size()
    wild = rng.integers(0, 2**width, layout.shape, dtype=np.uint64).astype(f"u{width // 8}")
    wild = torch.from_numpy(wild if width == 8 else wild.view(f"i{width // 8}"))
    bits[:] = torch.where(torch.from_numpy(rng.random(layout.shape) < 0.1), wild, bits)
    return pool


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("coder", ["fixed", "entropy"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "kinds", "dim", "block_tokens"), [(100, 2, 32, 16), (33, 1, 40, 8), (7, 2, 32, 16), (20, 2, 5, 3), (0, 2, 32, 16)]
)
def test_every_bit_is_restored_and_nothing_else_is_written(dtype, tokens, kinds, dim, block_tokens, coder):
    layout = KVLayout(ModelSpec("m", 2, 2, dim, dtype=dtype, kv_kinds=kinds), 16, block_tokens)
    pool, out = any_bits(layout), any_bits(layout, seed=1)
    before = out.data.clone()
    table, target = [5, 2, 9, 14, 1, 0, 7][: layout.blocks_for(tokens)], [1, 3, 15, 4, 0, 11, 8][: layout.blocks_for(tokens)]
    data = lossless_stream.encode(pool, table, tokens, coder)
    assert expand(data, out, target) == tokens
    for i, (a, b) in enumerate(zip(table, target, strict=True)):
        here = min(block_tokens, tokens - i * block_tokens)
        assert same(out.data[b, :, :, :, :here], pool.data[a, :, :, :, :here])
        assert same(out.data[b, :, :, :, here:], before[b, :, :, :, here:])
    others = [b for b in range(16) if b not in target]
    assert same(out.data[others], before[others])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(1, 3), st.integers(0, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_any_piece_is_restored(dtype, heads, tokens, dim, seed):
    kind = getattr(torch, dtype)
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (heads, tokens, dim, kind.itemsize), dtype=np.uint8) & rng.integers(0, 256, kind.itemsize, dtype=np.uint8)
    x = torch.from_numpy(raw.reshape(-1)).view(kind).view(heads, tokens, dim)
    assert same(decode(memoryview(encode(x)), heads, tokens, dim, kind), x)


def test_coded_exponents_take_about_their_entropy():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((2, 4096, 64)) * np.exp(rng.standard_normal((2, 1, 64)))).bfloat16()
    exponent = ((x.view(torch.int16).int() >> 7) & 255).numpy()
    base = np.array([[np.bincount(exponent[h, :, c]).argmax() for c in range(64)] for h in range(2)])
    _, counts = np.unique(exponent - base[:, None], return_counts=True)
    p = counts / counts.sum()
    entropy = -(p * np.log2(p)).sum()
    assert 8 + entropy < len(encode(x)) * 8 / x.numel() < 8 + entropy + 0.06


def test_kv_of_the_probe_shrinks():
    from pathlib import Path

    from safetensors.torch import load_file

    sample = load_file(Path(__file__).parents[3] / "data" / "probe" / "kv_sample.safetensors")
    layers, heads, tokens, dim = sample["keys"].shape
    pool = Pool(KVLayout(ModelSpec("probe", layers, heads, dim), 32))
    table = list(range(25))
    for layer in range(layers):
        pool.write(table, layer, 0, sample["keys"][layer], sample["values"][layer])
    raw = tokens * pool.layout.model.kv_bytes_per_token
    fixed, entropy = (raw / len(lossless_stream.encode(pool, table, tokens, coder)) for coder in ("fixed", "entropy"))
    assert fixed >= 1.28
    assert entropy >= 1.40


@pytest.mark.parametrize("coder", ["fixed", "entropy"])
def test_damage_is_refused_and_writes_nothing(coder):
    layout = KVLayout(ModelSpec("m", 1, 2, 32), 8, 16)
    pool, out = any_bits(layout), Pool(layout)
    data = lossless_stream.encode(pool, [3, 1, 2], 40, coder)
    for at in [*range(HEADER_BYTES), *range(HEADER_BYTES, len(data), 37)]:
        with pytest.raises(ValueError, match="lossless message"):
            expand(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], out, [0, 1, 2])
    for size in (0, 10, HEADER_BYTES, len(data) - 1):
        with pytest.raises(ValueError, match="cut"):
            expand(data[:size], out, [0, 1, 2])
    with pytest.raises(ValueError, match="the pool has"):
        expand(data, Pool(KVLayout(ModelSpec("m", 1, 2, 32), 8, 8)), [0, 1, 2])
    with pytest.raises(ValueError, match="table"):
        expand(data, out, [0, 1])
    with pytest.raises(ValueError, match="coder"):
        lossless_stream.encode(pool, [3, 1, 2], 40, "zip")
    assert not out.data.any()

"""The codec on KV of a real model (the probe on held-out text): the order of passes, and the distortion that streams state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from abkt.codec.codec import Codec
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

SAMPLE = Path(__file__).parents[2] / "data" / "probe" / "kv_sample.safetensors"


@pytest.fixture(scope="module")
def filled() -> tuple[Pool, list[int], int]:
    from safetensors.torch import load_file

    sample = load_file(SAMPLE)
    layers, kv_heads, tokens, dim = sample["keys"].shape
    pool = Pool(KVLayout(ModelSpec("probe", layers, kv_heads, dim), blocks=64))
    table = list(range(5, 5 + pool.layout.blocks_for(tokens)))
    for layer in range(layers):
        pool.write(table, layer, 0, sample["keys"][layer], sample["values"][layer])
    return pool, table, tokens


def test_the_slope_order_is_never_worse_than_the_uniform_order_at_equal_bytes(filled: tuple[Pool, list[int], int]) -> None:
    pool, table, tokens = filled
    stream = Codec(pool.layout).encode(pool, table, tokens)
    for size, distortion in zip(stream.uniform.bytes, stream.uniform.distortion, strict=True):
        # The two orders have band tables of different sizes, so a difference of one band's bytes is allowed.
        assert stream.slope.distortion[stream.slope.cut_within(size * 1.02)] <= distortion * 1.02


def test_a_finer_cut_has_less_error_and_the_stream_states_it(filled: tuple[Pool, list[int], int]) -> None:
    pool, table, tokens = filled
    codec, other = Codec(pool.layout), Pool(pool.layout)
    stream = codec.encode(pool, table, tokens)
    last = None
    for cut in (0, stream.slope.finest // 3, stream.slope.finest):
        data = b"".join(stream.buffers(0, stream.ends[cut]))
        assert codec.expand(data, other, table).distortion == pytest.approx(stream.slope.distortion[cut])
        error = sum(
            float((a.double() - b.double()).square().sum())
            for layer in range(pool.layout.model.layers)
            for a, b in zip(pool.read(table, layer, tokens), other.read(table, layer, tokens), strict=True)
        )
        assert last is None or error < last
        last = error


def test_eight_bits_are_nearly_lossless_and_the_verbatim_edges_are_lossless(filled: tuple[Pool, list[int], int]) -> None:
    pool, table, tokens = filled
    codec, other = Codec(pool.layout), Pool(pool.layout)
    stream = codec.encode(pool, table, tokens, order="uniform")
    codec.expand(b"".join(stream.buffers(0, stream.ends[-1])), other, table)
    assert stream.uniform.distortion[-1] < 1e-3
    keys, values = pool.read(table, 0, tokens)
    got_keys, got_values = other.read(table, 0, tokens)
    newest = tokens % pool.layout.block_tokens or pool.layout.block_tokens
    for sent, got in ((keys, got_keys), (values, got_values)):
        assert torch.equal(sent[:, :16], got[:, :16])
        assert torch.equal(sent[:, -newest:], got[:, -newest:])

"""Two layouts of the same KV: written KV is read back from each, and a transfer needs the expected number of pieces."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abkt.codec.codec import Codec
from abkt.kv.layer_major import LayerMajorPool
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec


def layout_of(layers: int = 5, kinds: int = 2, dim: int = 8, block_tokens: int = 4, blocks: int = 12) -> KVLayout:
    return KVLayout(ModelSpec("small", layers, 3 if kinds == 2 else 1, dim, kv_kinds=kinds), blocks, block_tokens)


def runs_of(table: list[int]) -> int:
    return 1 + sum(b != a + 1 for a, b in pairwise(table))


def memory(pool: Pool | LayerMajorPool) -> bytes:
    return pool.data.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("make", [Pool, LayerMajorPool])
def test_written_kv_is_read_back_from_every_layout(make, kinds):
    layout = layout_of(kinds=kinds)
    pool, table = make(layout), [7, 8, 2]
    heads = layout.model.kv_heads
    written = [[torch.randn(heads, 11, 8).bfloat16() for _ in range(kinds)] for _ in range(5)]
    for layer, values in enumerate(written):
        for start, stop in ((0, 3), (3, 4), (4, 11)):
            pool.write(table, layer, start, *(v[:, start:stop] for v in values))
    for layer, values in enumerate(written):
        assert all(torch.equal(a, b) for a, b in zip(pool.read(table, layer, 11), values, strict=True))
    with pytest.raises(ValueError, match="one latent" if kinds == 1 else "keys and values"):
        pool.write(table, 0, 0, *written[0], written[0][0])
    with pytest.raises(ValueError, match="layer 5"):
        pool.write(table, 5, 0, *written[0])


@given(st.permutations(range(12)), st.integers(1, 12))
def test_the_number_of_pieces_is_that_of_arithmetic(order, count):
    layout, table = layout_of(), list(order)[:count]
    flow, layerwise = Pool(layout), LayerMajorPool(layout)
    runs = runs_of(table)
    assert len(flow.pieces(table)) == runs, "FlowKV: a call for each run of blocks"
    wraps = table[0] == 0 and table[-1] == 11  # the last block of a plane touches the first of the next
    assert len(layerwise.pieces(table)) == 5 * 2 * runs - (5 * 2 - 1 if wraps else 0)
    moved = [sum(size for *_, size in pool.pieces(table)) for pool in (flow, layerwise)]
    assert moved == [count * layout.block_bytes] * 2


@given(st.permutations(range(12)), st.integers(1, 12))
def test_pieces_hold_exactly_the_blocks(order, count):
    layout, table = layout_of(), list(order)[:count]
    for pool in (Pool(layout), LayerMajorPool(layout)):
        at = 2 if isinstance(pool, LayerMajorPool) else 0
        pool.data.index_fill_(at, torch.tensor(table), 1.0)
        one = torch.ones(1, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
        held = memory(pool)
        assert all(held[start : start + size] == one * (size // 2) for start, size in pool.pieces(table))
        assert held.count(one[1]) == sum(size for _, size in pool.pieces(table)) // 2


@pytest.mark.parametrize("backend", ["oracle", "auto"])
def test_latent_kv_is_coded_as_one_kind_without_centres(backend):
    """MLA has 576 channels of one kind, no V and no centres. The error at 4 bits is that of K; a stream for K and V is refused."""
    layout = layout_of(layers=2, kinds=1, dim=576, block_tokens=16, blocks=12)
    pool, other, table = Pool(layout), Pool(layout), [5, 6, 7, 1, 0, 9, 3, 2]
    spread = torch.linspace(0.1, 3, 576)
    pool.data.copy_(torch.randn(layout.shape, generator=torch.Generator().manual_seed(0)) * spread + 5 * spread)
    codec = Codec(layout, backend)
    stream = codec.encode(pool, table, 120, depth_bits=4)
    done = codec.expand(stream.prefix(len(stream.ends) - 1), other, table)
    sent, got = (torch.cat([p.read(table, layer, 120)[0] for layer in range(2)]).double()[:, 16:112] for p in (pool, other))
    error = ((sent - got).square().sum((1, 2)) / (sent - sent.mean(1, keepdim=True)).square().sum((1, 2))).mean()
    assert done.distortion == pytest.approx(float(error), rel=0.02)
    assert 0.005 < done.distortion < 0.012
    two = layout_of(layers=2, kinds=2, dim=576, block_tokens=16)
    with pytest.raises(ValueError, match="holds blocks"):
        Codec(two).expand(stream.prefix(0), Pool(two), table)

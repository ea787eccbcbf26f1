"""A pool returns the KV that was written, block by block, and gives each run of blocks as one piece of memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec


def layout_of(blocks: int = 12, block_tokens: int = 4, dtype: str = "bfloat16") -> KVLayout:
    return KVLayout(ModelSpec("small", layers=2, kv_heads=3, head_dim=8, dtype=dtype), blocks, block_tokens)


def numbered(heads: int, tokens: int, dim: int, first: int = 0) -> torch.Tensor:
    return (torch.arange(heads * tokens * dim).view(heads, tokens, dim) % 251 + first).to(torch.bfloat16)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_chunks_written_one_after_another_are_read_back_whole(chunks, random):
    tokens, layout = min(sum(chunks), 48), layout_of()
    table = random.sample(range(layout.blocks), layout.blocks_for(tokens))
    pool, keys, values = Pool(layout), numbered(3, tokens, 8), numbered(3, tokens, 8, first=2)
    start = 0
    for chunk in chunks:
        stop = min(start + chunk, tokens)
        pool.write(table, 1, start, keys[:, start:stop], values[:, start:stop])
        start = stop
    read_keys, read_values = pool.read(table, 1, tokens)
    assert torch.equal(read_keys, keys)
    assert torch.equal(read_values, values)
    assert not pool.data[:, 0].any(), "another layer was written"
    others = [block for block in range(layout.blocks) if block not in table]
    assert not pool.data[others].any(), "a block outside the table was written"


def test_a_token_lies_where_the_layout_says():
    pool = Pool(layout_of())
    pool.write([7, 2], 1, 0, numbered(3, 6, 8), numbered(3, 6, 8, first=1))
    assert torch.equal(pool.data[2, 1, 0, :, 1], numbered(3, 6, 8)[:, 5])
    assert torch.equal(pool.data[7, 1, 1, :, 3], numbered(3, 6, 8, first=1)[:, 3])


def test_run_bytes_are_views_of_the_pools_memory():
    pool = Pool(layout_of())
    run = pool.run_bytes(3, 2)
    assert len(run) == 2 * pool.layout.block_bytes
    assert not run.readonly
    pool.data[3:5] = 1.5
    assert bytes(run) == torch.full((run.nbytes // 2,), 1.5, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    run[:] = bytes(len(run))
    assert not pool.data[3:5].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(2, 6, 8, dtype=torch.bfloat16)}, r"\(2, 6, 8\).*\(kv_heads, tokens, head_dim\) = \(3, tokens, 8\)"),
        ({"values": torch.zeros(3, 5, 8, dtype=torch.bfloat16)}, r"\(3, 6, 8\).*\(3, 5, 8\)"),
        ({"keys": torch.zeros(3, 6, 8)}, "float32.*bfloat16"),
        ({"layer": 2}, "layer 2"),
        ({"start": -1}, "start -1"),
        ({"table": [0]}, "1 blocks of 4 tokens cannot hold 6 tokens; 2 blocks are needed"),
        ({"table": [0, 12]}, "block 12"),
        ({"table": [-1, 0]}, "block -1"),
        ({"table": [4, 4]}, "twice"),
    ],
)
def test_a_wrong_write_is_refused_and_changes_nothing(change, message):
    pool = Pool(layout_of())
    good = {"table": [0, 1], "layer": 0, "start": 0, "keys": numbered(3, 6, 8, 1), "values": numbered(3, 6, 8, 1)}
    given = {**good, **change}
    with pytest.raises(ValueError, match=message):
        pool.write(given["table"], given["layer"], given["start"], given["keys"], given["values"])
    assert not pool.data.any()


@pytest.mark.parametrize(("first", "blocks"), [(-1, 1), (11, 2), (0, -1)])
def test_run_bytes_outside_the_pool_are_refused(first, blocks):
    with pytest.raises(ValueError, match="pool of 12"):
        Pool(layout_of()).run_bytes(first, blocks)

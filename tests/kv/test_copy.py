"""Copies of raw blocks: gather, scatter and copy move exactly the blocks of the table, bit for bit; and checks of the kernel's code."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abkt.kv import copy
from abkt.kv.layer_major import LayerMajorPool
from abkt.kv.pool import Pool
from abkt.kv.runs import BlockRun, aligned_runs
from abkt.spec import DTYPE_BYTES, KVLayout, ModelSpec
from tests.triton_check_main import run

CHECK = "tests.kv.copy_check"
BLOCKS = 24
POOLS = st.sampled_from([Pool, LayerMajorPool])
LAYOUTS = st.builds(
    lambda layers, kinds, heads, dim, tokens, dtype: KVLayout(ModelSpec("any", layers, heads, dim, dtype, kv_kinds=kinds), BLOCKS, tokens),
    *(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 9), st.integers(1, 4), st.sampled_from(list(DTYPE_BYTES))),
)
# Scattered blocks, and stretches of adjacent ones, which a CPU copies as runs.
SCATTERED = st.tuples(st.permutations(range(BLOCKS)), st.integers(0, BLOCKS)).map(lambda drawn: list(drawn[0])[: drawn[1]])
ADJACENT = st.tuples(st.integers(0, BLOCKS), st.integers(0, BLOCKS)).map(lambda drawn: list(range(min(drawn), max(drawn))))
TABLES = st.one_of(SCATTERED, ADJACENT)


def memory(pool) -> torch.Tensor:
    return pool.data.view(torch.uint8).view(-1)


def poisoned(pool, seed: int):
    """Random bytes everywhere: infinities and NaN of every payload too, where the dtype has them."""
    memory(pool).random_(0, 256, generator=torch.Generator().manual_seed(seed))
    return pool


def blocks_of(pool) -> torch.Tensor:
    """A copy of a pool's bytes, [blocks, bytes], each block as [layer, kind, kv_head, token, head_dim]."""
    block_axis = 2 if isinstance(pool, LayerMajorPool) else 0
    return pool.data.view(torch.uint8).movedim(block_axis, 0).reshape(pool.layout.blocks, -1).clone()


def pair_of(tables) -> tuple[list[int], list[int]]:
    count = min(map(len, tables))
    return tables[0][:count], tables[1][:count]


@given(LAYOUTS, POOLS, POOLS, st.tuples(TABLES, TABLES).map(pair_of), st.booleans())
def test_gather_then_scatter_moves_the_blocks_of_the_tables_and_nothing_else(layout, make, make_other, tables, as_bytes):
    pool, other = poisoned(make(layout), 1), poisoned(make_other(layout), 2)
    sent, received, before = blocks_of(pool), blocks_of(other), memory(pool).clone()
    dtype = torch.uint8 if as_bytes else pool.dtype
    staged = torch.full((len(tables[0]) * layout.block_bytes,), 7, dtype=torch.uint8).view(dtype)
    copy.gather(pool, tables[0], staged)
    assert torch.equal(staged.view(torch.uint8), sent[tables[0]].view(-1))
    copy.scatter(staged, other, tables[1])
    received[tables[1]] = sent[tables[0]]
    assert torch.equal(blocks_of(other), received)
    assert torch.equal(memory(pool), before)


@given(LAYOUTS, POOLS, POOLS, st.tuples(TABLES, TABLES).map(pair_of))
def test_copying_runs_equals_copying_their_blocks_one_by_one(layout, make, make_other, tables):
    pool, other = poisoned(make(layout), 1), poisoned(make_other(layout), 2)
    sent, expected, before = blocks_of(pool), blocks_of(other), memory(pool).clone()
    for source, destination in zip(*tables, strict=True):
        expected[destination] = sent[source]
    copy.copy_runs(pool, other, aligned_runs(*tables))
    assert torch.equal(blocks_of(other), expected)
    assert torch.equal(memory(pool), before)


@given(st.permutations(range(BLOCKS)), st.integers(0, BLOCKS // 2))
def test_a_pool_may_be_copied_within_itself(order, count):
    layout = KVLayout(ModelSpec("small", 2, 1, 5), BLOCKS, 2)
    for make in (Pool, LayerMajorPool):
        pool = poisoned(make(layout), 1)
        expected, source, destination = blocks_of(pool), order[:count], order[count : 2 * count]
        expected[destination] = expected[source]
        copy.copy_runs(pool, pool, aligned_runs(source, destination))
        assert torch.equal(blocks_of(pool), expected)


def test_a_gathered_block_is_contiguous():
    """Layer-major memory [layer, kind, block, ...] is gathered block by block."""
    pool = LayerMajorPool(KVLayout(ModelSpec("small", layers=2, kv_heads=1, head_dim=1, dtype="float32"), blocks=3, block_tokens=1))
    pool.data.copy_(torch.arange(12.0).view_as(pool.data))
    out = torch.empty(2, 4)
    copy.gather(pool, [2, 0], out)
    assert out.tolist() == [[2, 5, 8, 11], [0, 3, 6, 9]]


def test_a_signalling_nan_keeps_its_bits():
    pool = Pool(KVLayout(ModelSpec("small", 1, 1, 4, "float32"), 2, 1))
    pool.data.view(torch.int32)[1] = 0x7F800001
    staged = torch.zeros(8)
    copy.gather(pool, [1], staged)
    assert (staged.view(torch.int32) == 0x7F800001).all()


LAYOUT = KVLayout(ModelSpec("small", layers=2, kv_heads=1, head_dim=4), blocks=6, block_tokens=2)  # 64 bytes a block


@pytest.mark.parametrize(
    ("table", "buffer", "message"),
    [
        ([0, 6], torch.zeros(128, dtype=torch.uint8), "block 6; the pool has blocks 0 to 5"),
        ([-1], torch.zeros(64, dtype=torch.uint8), "block -1"),
        ([1, 1], torch.zeros(128, dtype=torch.uint8), "twice"),
        ([1, 2], torch.zeros(64, dtype=torch.uint8), r"\(64,\) .*64 bytes.* 2 blocks of pool \(6, 2, 2, 1, 2, 4\).*; 128 bytes"),
        ([1], torch.zeros(128, dtype=torch.uint8), r"\(128,\) .* 64 bytes there"),
        ([1], torch.zeros(32, dtype=torch.float16), "float16.*bfloat16"),
        ([1], torch.zeros(64, 2, dtype=torch.uint8)[:, 0], r"strided buffer \(64,\)"),
        ([1], torch.zeros(64, dtype=torch.uint8, device="meta"), "on meta.*on cpu"),
    ],
)
@pytest.mark.parametrize("make", [Pool, LayerMajorPool])
def test_a_wrong_table_or_buffer_is_refused_and_nothing_is_written(make, table, buffer, message):
    pool = poisoned(make(LAYOUT), 1)
    before = memory(pool).clone()
    for call in (lambda: copy.gather(pool, table, buffer), lambda: copy.scatter(buffer, pool, table)):
        with pytest.raises(ValueError, match=message):
            call()
    assert torch.equal(memory(pool), before)
    assert buffer.is_meta or not buffer.any()


@pytest.mark.parametrize(
    ("destination", "runs", "message"),
    [
        (Pool(LAYOUT), [BlockRun(4, 0, 3)], "block 6"),
        (Pool(LAYOUT), [BlockRun(0, -1, 2)], "block -1"),
        (Pool(LAYOUT), [BlockRun(0, 1, 2), BlockRun(3, 2, 1)], "twice"),
        (Pool(LAYOUT), [BlockRun(0, 1, 2), BlockRun(3, 4, 0)], "blocks=0.*at least 1"),
        (Pool(KVLayout(ModelSpec("small", 2, 1, 8), 6, 2)), [BlockRun(0, 0, 1)], r"\(6, 2, 2, 1, 2, 4\).*\(6, 2, 2, 1, 2, 8\)"),
        (Pool(KVLayout(ModelSpec("small", 2, 1, 4, "float16"), 6, 2)), [BlockRun(0, 0, 1)], "bfloat16.*float16"),
        (LayerMajorPool(KVLayout(ModelSpec("small", 1, 2, 4), 6, 2)), [BlockRun(0, 0, 1)], r"\(6, 2, 2, 1, 2, 4\).*\(6, 1, 2, 2, 2, 4\)"),
        (Pool(LAYOUT, "meta"), [BlockRun(0, 0, 1)], "on cpu.*on meta"),
    ],
)
def test_wrong_runs_and_pools_are_refused_and_nothing_is_written(destination, runs, message):
    source = poisoned(Pool(LAYOUT), 1)
    before = memory(source).clone()
    with pytest.raises(ValueError, match=message):
        copy.copy_runs(source, destination, runs)
    assert torch.equal(memory(source), before)
    assert destination.data.is_meta or not memory(destination).any()


def test_runs_within_a_pool_that_would_depend_on_their_order_are_refused():
    pool = poisoned(Pool(LAYOUT), 1)
    before = memory(pool).clone()
    with pytest.raises(ValueError, match="block 2 is both read and written"):
        copy.copy_runs(pool, pool, [BlockRun(1, 2, 2)])
    assert torch.equal(memory(pool), before)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (torch.tensor([1, 2], dtype=torch.int32), r"\(2,\) of torch.int32.*\(6, 2, 2, 1, 2, 4\)"),
        (torch.tensor([[1], [2]]), r"\(2, 1\)"),
        (torch.tensor([1, 9, 2, 9])[::2], r"\[blocks\] of int64"),
        (torch.tensor([1, 2], device="meta"), "on meta"),
        (torch.tensor([1, 6]), "block 6"),
        (torch.tensor([2, 2]), "twice"),
    ],
)
def test_a_wrong_table_on_the_device_is_refused(blocks, message):
    pool, other, staged = poisoned(Pool(LAYOUT), 1), Pool(LAYOUT), torch.zeros(128, dtype=torch.uint8)
    before, right = memory(pool).clone(), torch.tensor([0, 1])
    for call in (
        lambda: copy.enqueue_gather(pool, blocks, staged),
        lambda: copy.enqueue_scatter(staged, pool, blocks),
        lambda: copy.enqueue_copy(pool, other, blocks, right),
        lambda: copy.enqueue_copy(pool, other, right, blocks),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert torch.equal(memory(pool), before)
    assert not staged.any()
    assert not memory(other).any()


def test_tables_of_two_lengths_and_memory_of_another_shape_are_refused():
    pool, other = Pool(LAYOUT), Pool(LAYOUT)
    with pytest.raises(ValueError, match=r"2 blocks of pool \(6, .*to 1 of"):
        copy.enqueue_copy(pool, other, torch.tensor([0, 1]), torch.tensor([1]))
    other.data = LayerMajorPool(LAYOUT).data
    with pytest.raises(ValueError, match=r"\(2, 2, 6, 1, 2, 4\).*\(6, 2, 2, 1, 2, 4\)"):
        copy.gather(other, [0], torch.zeros(64, dtype=torch.uint8))


def test_the_copy_module_loads_with_torch_alone():
    code = "import sys, abkt.kv.copy; print({'triton', 'hydra', 'pandas', 'simpy', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def check(*arguments: str) -> str:
    pytest.importorskip("triton")
    return run(CHECK, *arguments)


def test_the_kernel_moves_the_same_bytes_as_the_oracle():
    check("values")


def test_the_kernel_compiles_to_loads_and_stores_of_16_bytes_without_spills():
    report = json.loads(check("compile", "80", "90"))
    assert len(report) == 8
    for row in report:
        assert row["stack"] == row["local"] == 0, row
        assert row["registers"] <= 32, f"fewer than 2,048 threads a multiprocessor: {row}"
        assert row["wide_loads"] == row["wide_stores"] == 4, row


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_captured_copy_reads_the_table_at_each_replay():
    from abkt.codec.fixed.enqueue import captured

    layout = KVLayout(ModelSpec("small", 3, 2, 20), BLOCKS, 3)
    pool, expected = poisoned(LayerMajorPool(layout), 1), poisoned(Pool(layout), 2)
    source, destination = LayerMajorPool(layout, "cuda"), Pool(layout, "cuda")
    blocks = copy.table_on(source.data.device, range(8))
    staged = torch.zeros(8 * layout.block_bytes, dtype=torch.uint8, device="cuda")

    def enqueue() -> None:
        copy.enqueue_gather(source, blocks, staged)
        copy.enqueue_scatter(staged, destination, blocks)

    replay = captured(enqueue)
    source.data.copy_(pool.data)
    destination.data.copy_(expected.data)
    table = [9, 3, 4, 5, 23, 0, 1, 17]
    blocks.copy_(torch.tensor(table))
    replay()
    copy.copy_runs(pool, expected, aligned_runs(table, table))
    assert torch.equal(destination.data.cpu().view(torch.uint8), expected.data.view(torch.uint8))

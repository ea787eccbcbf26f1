"""Copies of raw KV, in whole blocks: gathered from a pool into a staging buffer, scattered from one into a pool, or copied from pool to
pool. Each is one launch.

Memory is moved as words, whatever the dtype, so every bit pattern survives. Every pool is seen as [blocks, pieces, bytes] with strides of
its own; a piece is one (layer, kind) of a block. So a layer-major pool can be copied to a block-contiguous one and back, and if both sides
hold a block in one piece of memory, it is copied as one. On a GPU the kernel of copy_kernels.py moves the words. `move` does the same in
torch, for pools on a CPU and as the reference for the kernel. Source: FlowKV (arXiv 2504.03775), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from abkt.kv.layer_major import LayerMajorPool
from abkt.kv.pool import Pool, check_table
from abkt.kv.runs import BlockRun, aligned_runs
from abkt.kv.words import WORDS, joined, word_bytes

LONG_RUN = 8  # blocks; from this mean length on, one call per run is as fast as one indexed copy, and needs no second buffer


def gather(pool: Pool | LayerMajorPool, table: Sequence[int], out: torch.Tensor) -> None:
    """Copy the blocks of a table, in its order, each [layer, kind, kv_head, token, head_dim], into a staging buffer.

    out: a contiguous buffer of uint8 or the pool's dtype, on the pool's device, with as many bytes as the blocks. Raises ValueError, and
    writes nothing, for another `out`, and for a table with a block that the pool does not have, or one that is named twice.
    """
    enqueue_gather(pool, table_on(by_piece(pool).device, check_table(pool.layout, table, 0)), out)


def scatter(staged: torch.Tensor, pool: Pool | LayerMajorPool, table: Sequence[int]) -> None:
    """The inverse of gather: copy `staged`, a buffer like `out` in gather, into the blocks of a table. Raises ValueError as gather does."""
    enqueue_scatter(staged, pool, table_on(by_piece(pool).device, check_table(pool.layout, table, 0)))


def copy_runs(source: Pool | LayerMajorPool, destination: Pool | LayerMajorPool, runs: Sequence[BlockRun]) -> None:
    """Copy all runs from one pool directly into another of the same layout. It may be on another GPU, or be memory of another process that
    is mapped here.

    Raises ValueError, and writes nothing, if the pools do not fit each other, if a run is empty or has a block that its pool does not have,
    and if a block is named twice on one side, or on both sides within one pool.
    """
    empty = next((run for run in runs if run.blocks < 1), None)
    if empty is not None:
        raise ValueError(f"{empty}: a run has at least 1 block")
    sent = check_table(source.layout, [run.source + i for run in runs for i in range(run.blocks)], 0)
    received = check_table(destination.layout, [run.destination + i for run in runs for i in range(run.blocks)], 0)
    memory, both = (by_piece(source), by_piece(destination)), set(sent) & set(received)
    if both and memory[0].data_ptr() == memory[1].data_ptr():
        raise ValueError(f"block {min(both)} is both read and written by one copy within a pool; runs are copied in no particular order")
    enqueue_copy(source, destination, *(table_on(memory[0].device, table) for table in (sent, received)))


def enqueue_gather(pool: Pool | LayerMajorPool, blocks: torch.Tensor, out: torch.Tensor) -> None:
    """The same as gather, with a table on the pool's device, int64 [blocks]: one launch, which a CUDA graph can hold. Nothing waits for a
    GPU, so the caller must check the block numbers in a table on a GPU; on a CPU they are checked here."""
    memory = by_piece(pool)
    _check_blocks(blocks, pool, pool.data.device)
    staged = _staged(out, pool, len(blocks))
    if len(blocks):
        mover_on(pool.data.device)(memory, staged, blocks, None)


def enqueue_scatter(staged: torch.Tensor, pool: Pool | LayerMajorPool, blocks: torch.Tensor) -> None:
    """The same as scatter, with a table on the pool's device as in enqueue_gather."""
    memory = by_piece(pool)
    _check_blocks(blocks, pool, pool.data.device)
    given = _staged(staged, pool, len(blocks))
    if len(blocks):
        mover_on(pool.data.device)(given, memory, None, blocks)


def enqueue_copy(
    source: Pool | LayerMajorPool, destination: Pool | LayerMajorPool, source_blocks: torch.Tensor, destination_blocks: torch.Tensor
) -> None:
    """The same as copy_runs, with two tables of equal length on the source's device. Block source_blocks[i] goes to destination_blocks[i].

    Between two GPUs it is enqueued on the source's GPU, in the order of both current CUDA streams, as Tensor.copy_ is.
    """
    for blocks, pool in ((source_blocks, source), (destination_blocks, destination)):
        _check_blocks(blocks, pool, source.data.device)
    sides = [(pool.layout.shape[1:], pool.dtype, pool.data.device.type) for pool in (source, destination)]
    if sides[0] != sides[1] or len(source_blocks) != len(destination_blocks):
        raise ValueError(
            f"{len(source_blocks)} blocks of {_named(source)} cannot go to {len(destination_blocks)} of {_named(destination)}; "
            "both sides need the same number of blocks, of one shape and dtype, and both pools on CPUs or both on GPUs"
        )
    memory = by_piece(source), by_piece(destination)
    if len(source_blocks):
        mover_on(source.data.device)(*memory, source_blocks, destination_blocks)


def by_piece(pool: Pool | LayerMajorPool) -> torch.Tensor:
    """The memory of a pool as a view, uint8 [blocks, layers * kinds, bytes]. Raises ValueError if its shape or dtype differs from the
    layout's."""
    blocks, layers, kinds, *rest = pool.layout.shape
    flat = isinstance(pool, Pool)
    shape = (blocks, layers, kinds, *rest) if flat else (layers, kinds, blocks, *rest)
    data = pool.data
    if tuple(data.shape) != shape or data.dtype != pool.dtype or not data.is_contiguous():
        raise ValueError(f"memory {tuple(data.shape)} of {data.dtype} is not a contiguous pool {shape} of {pool.dtype}")
    memory = data.view(torch.uint8)
    return memory.view(blocks, layers * kinds, -1) if flat else memory.view(layers * kinds, blocks, -1).transpose(0, 1)


def table_on(device: torch.device, table: Sequence[int]) -> torch.Tensor:
    """A table as int64 on a device. Nothing waits: it is copied from pinned memory, on the device's current CUDA stream."""
    return torch.tensor(table, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)


Mover = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None], None]


def mover_on(device: torch.device) -> Mover:
    """The function that moves blocks on a device: `move` for a CPU, the launch of the kernel for a GPU."""
    if device.type == "cpu":
        return move
    from abkt.kv.copy_kernels import launch

    return launch


def move(
    source: torch.Tensor, destination: torch.Tensor, source_blocks: torch.Tensor | None, destination_blocks: torch.Tensor | None
) -> None:
    """destination[destination_blocks] = source[source_blocks], for views from by_piece on a CPU. Tables are int64; None stands for 0, 1,
    2, ..."""
    source, destination = joined(source, destination)
    word = WORDS[word_bytes(8, source, destination)]
    source, destination = source.view(word), destination.view(word)
    counted = list(range(len(source if source_blocks is None else source_blocks)))
    runs = aligned_runs(*(counted if blocks is None else blocks.tolist() for blocks in (source_blocks, destination_blocks)))
    if len(runs) * LONG_RUN <= len(counted):
        for run in runs:
            destination[run.destination : run.destination + run.blocks] = source[run.source : run.source + run.blocks]
    elif source_blocks is not None and destination_blocks is not None:
        destination.index_copy_(0, destination_blocks, source.index_select(0, source_blocks))
    elif source_blocks is not None:
        torch.index_select(source, 0, source_blocks, out=destination)
    elif destination_blocks is not None:
        destination.index_copy_(0, destination_blocks, source)
    else:
        destination.copy_(source)


def _staged(buffer: torch.Tensor, pool: Pool | LayerMajorPool, blocks: int) -> torch.Tensor:
    """A staging buffer as [blocks, pieces, bytes]."""
    needed, held, strided = blocks * pool.layout.block_bytes, buffer.numel() * buffer.element_size(), not buffer.is_contiguous()
    if needed != held or strided or buffer.dtype not in (torch.uint8, pool.dtype) or buffer.device != pool.data.device:
        raise ValueError(
            f"{'strided ' * strided}buffer {tuple(buffer.shape)} of {buffer.dtype} on {buffer.device}, {held} bytes, is not for "
            f"{blocks} blocks of {_named(pool)}; {needed} bytes there are needed, contiguous, of uint8 or {pool.dtype}"
        )
    planes = pool.layout.model.layers * pool.layout.model.kv_kinds
    return buffer.reshape(-1).view(torch.uint8).view(blocks, planes, pool.layout.block_bytes // planes)


def _check_blocks(blocks: torch.Tensor, pool: Pool | LayerMajorPool, device: torch.device) -> None:
    if blocks.dim() != 1 or blocks.dtype != torch.int64 or blocks.device != device or not blocks.is_contiguous():
        raise ValueError(
            f"table {tuple(blocks.shape)} of {blocks.dtype} on {blocks.device} for {_named(pool)}; [blocks] of int64 on {device} is needed"
        )
    if device.type == "cpu":
        check_table(pool.layout, blocks.tolist(), 0)


def _named(pool: Pool | LayerMajorPool) -> str:
    return f"pool {pool.layout.shape} of {pool.dtype} on {pool.data.device}"

"""A pool's memory as the bytes of a raw transfer: whole blocks in token order.

If the transport reaches the pool's memory, the transfer reads and writes the pool directly; adjacent blocks are one piece. Otherwise a
GPU's pool is copied through host memory: one launch gathers the blocks and one scatters them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from abkt.kv.copy import gather, scatter
from abkt.kv.pool import Pool
from abkt.kv.runs import aligned_runs
from abkt.spec import KVLayout
from abkt.transfer.pieces import BufferSink, ByteSink, ByteSource, DevicePieces, PiecesSink, PiecesSource

REACHES_GPUS = frozenset({"cuda_ipc"})  # transports that read and write a GPU's memory directly


def fingerprint(layout: KVLayout) -> str:
    """The properties that both ends must share. If they differ, the connection is refused with an error that names both."""
    model = layout.model
    shape = f"{model.layers} layers, {model.kv_heads} kv heads of {model.head_dim}, {model.dtype}, blocks of {layout.block_tokens}"
    return f"{model.name}: {shape}"


def raw_pieces(pool: Pool, table: Sequence[int]) -> list[memoryview]:
    """The memory of the blocks of a table, one piece for each run of adjacent blocks; readable and writable. Only for a CPU pool."""
    return [pool.run_bytes(run.source, run.blocks) for run in aligned_runs(table, range(len(table)))]


def device_pieces(pool: Pool, table: Sequence[int]) -> DevicePieces:
    """The same for a GPU's pool. Waits for the work that this thread has enqueued on the GPU."""
    memory, size = pool.data.view(torch.uint8).reshape(-1), pool.layout.block_bytes
    if memory.device.type == "cuda":
        torch.cuda.current_stream(memory.device).synchronize()
    runs = aligned_runs(table, range(len(table)))
    return DevicePieces(memory[run.source * size : (run.source + run.blocks) * size] for run in runs)


def in_place(pool: Pool, transport: str = "") -> bool:
    """Whether a transfer can read and write the pool's memory directly."""
    return pool.data.device.type == "cpu" or transport in REACHES_GPUS


def raw_source(pool: Pool, table: Sequence[int], transport: str = "") -> ByteSource:
    """The source of a raw transfer of these blocks, which must not change until the transfer has ended. transport: the transport's name."""
    if not in_place(pool, transport):
        return PiecesSource([_staged(pool, table)])
    return PiecesSource(raw_pieces(pool, table)) if pool.data.device.type == "cpu" else device_pieces(pool, table)


def raw_sink(pool: Pool, table: Sequence[int], transport: str = "") -> ByteSink:
    """The sink of a raw transfer into these blocks. If it is a BufferSink, call put_raw afterwards."""
    if not in_place(pool, transport):
        return BufferSink(len(table) * pool.layout.block_bytes)
    return PiecesSink(raw_pieces(pool, table)) if pool.data.device.type == "cpu" else device_pieces(pool, table)


def put_raw(data: bytearray, pool: Pool, table: Sequence[int]) -> None:
    """Write raw bytes from host memory into the blocks of a table."""
    scatter(torch.frombuffer(data, dtype=torch.uint8).to(pool.data.device), pool, table)


def _staged(pool: Pool, table: Sequence[int]) -> memoryview:
    held = torch.empty(len(table) * pool.layout.block_bytes, dtype=torch.uint8, device=pool.data.device)
    gather(pool, table, held)
    return held.cpu().numpy().data

"""Pool memory as the bytes of a raw transfer: whole blocks in token order. The pool
itself, adjacent blocks as one piece, where the transport
reaches it; else the memory of a GPU goes through the host's, gathered in one launch and scattered in one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from abkt.kv.copy import gather, scatter
from abkt.kv.pool import Pool
from abkt.kv.runs import aligned_runs
from abkt.spec import KVLayout
from abkt.transfer.pieces import BufferSink, ByteSink, ByteSource, DevicePieces, PiecesSink, PiecesSource

REACHES_GPUS = frozenset({"cuda_ipc"})  # transports that move a GPU's memory as it lies


def fingerprint(layout: KVLayout) -> str:
    """What both ends must agree on before a byte of KV moves; a mismatch is refused with both named."""
    model = layout.model
    shape = f"{model.layers} layers, {model.kv_heads} kv heads of {model.head_dim}, {model.dtype}, blocks of {layout.block_tokens}"
    return f"{model.name}: {shape}"


def raw_pieces(pool: Pool, table: Sequence[int]) -> list[memoryview]:
    """The memory of the blocks of table, one piece a run. Writable: the same pieces take a raw transfer in. Of a CPU pool alone."""
    return [pool.run_bytes(run.source, run.blocks) for run in aligned_runs(table, range(len(table)))]


def device_pieces(pool: Pool, table: Sequence[int]) -> DevicePieces:
    """The same of a GPU's pool, once all that this thread has enqueued there is done."""
    memory, size = pool.data.view(torch.uint8).reshape(-1), pool.layout.block_bytes
    if memory.device.type == "cuda":
        torch.cuda.current_stream(memory.device).synchronize()
    runs = aligned_runs(table, range(len(table)))
    return DevicePieces(memory[run.source * size : (run.source + run.blocks) * size] for run in runs)


def in_place(pool: Pool, transport: str = "") -> bool:
    """Whether a transfer can read and write the pool's own memory."""
    return pool.data.device.type == "cpu" or transport in REACHES_GPUS


def raw_source(pool: Pool, table: Sequence[int], transport: str = "") -> ByteSource:
    """What a raw transfer of these blocks reads. The blocks must not change until it has ended. transport: its name."""
    if not in_place(pool, transport):
        return PiecesSource([_staged(pool, table)])
    return PiecesSource(raw_pieces(pool, table)) if pool.data.device.type == "cpu" else device_pieces(pool, table)


def raw_sink(pool: Pool, table: Sequence[int], transport: str = "") -> ByteSink:
    """What a raw transfer into these blocks writes; where that is a BufferSink, put_raw still has to be called."""
    if not in_place(pool, transport):
        return BufferSink(len(table) * pool.layout.block_bytes)
    return PiecesSink(raw_pieces(pool, table)) if pool.data.device.type == "cpu" else device_pieces(pool, table)


def put_raw(data: bytearray, pool: Pool, table: Sequence[int]) -> None:
    """Raw bytes that came through the host's memory, into the blocks of table."""
    scatter(torch.frombuffer(data, dtype=torch.uint8).to(pool.data.device), pool, table)


def _staged(pool: Pool, table: Sequence[int]) -> memoryview:
    held = torch.empty(len(table) * pool.layout.block_bytes, dtype=torch.uint8, device=pool.data.device)
    gather(pool, table, held)
    return held.cpu().numpy().data

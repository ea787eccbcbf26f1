"""A pool's memory as the bytes of a raw transfer: whole blocks in token order. Of a block before the window of a layer, that layer's KV is
left out, since no later token sees it.

If the transport reaches the pool's memory, the transfer reads and writes the pool directly; adjacent blocks are one piece. Otherwise a
GPU's pool is copied through host memory: one launch gathers the blocks and one scatters them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from abkt.kv.copy import gather, scatter
from abkt.kv.pool import Pool, merged
from abkt.spec import KVLayout
from abkt.transfer.pieces import BufferSink, ByteSink, ByteSource, DevicePieces, PiecesSink, PiecesSource

REACHES_GPUS = frozenset({"cuda_ipc"})  # transports that read and write a GPU's memory directly


def fingerprint(layout: KVLayout) -> str:
    """The properties that both ends must share. If they differ, the connection is refused with an error that names both."""
    model = layout.model
    shape = f"{model.layers} layers, {model.kv_heads} kv heads of {model.head_dim}, {model.dtype}, blocks of {layout.block_tokens}"
    windows = f", windows of {model.window} in {model.window_layers} layers" if model.layer_windows else ""
    return f"{model.name}: {shape}{windows}"


def kept_pieces(layout: KVLayout, table: Sequence[int], tokens: int) -> list[tuple[int, int]]:
    """The pieces of a pool's memory, (first byte, bytes), that a raw transfer of a sequence moves; adjacent ones are one piece."""
    layer, block = layout.block_bytes // layout.model.layers, layout.block_bytes
    kept = layout.kept_layers(tokens)
    return merged((at * block + a * layer, (b - a) * layer) for at, spans in zip(table, kept, strict=True) for a, b in spans)


def raw_pieces(pool: Pool, table: Sequence[int], tokens: int) -> list[memoryview]:
    """The memory of a sequence, one piece for each run of adjacent blocks; readable and writable. Only for a CPU pool."""
    whole = pool.run_bytes(0, pool.layout.blocks)
    return [whole[start : start + size] for start, size in kept_pieces(pool.layout, table, tokens)]


def device_pieces(pool: Pool, table: Sequence[int], tokens: int) -> DevicePieces:
    """The same for a GPU's pool. Waits for the work that this thread has enqueued on the GPU."""
    memory = pool.data.view(torch.uint8).reshape(-1)
    if memory.device.type == "cuda":
        torch.cuda.current_stream(memory.device).synchronize()
    return DevicePieces(memory[start : start + size] for start, size in kept_pieces(pool.layout, table, tokens))


def in_place(pool: Pool, transport: str = "") -> bool:
    """Whether a transfer can read and write the pool's memory directly."""
    return pool.data.device.type == "cpu" or transport in REACHES_GPUS


def raw_source(pool: Pool, table: Sequence[int], tokens: int, transport: str = "") -> ByteSource:
    """The source of a raw transfer of a sequence, which must not change until the transfer has ended. transport: the transport's name."""
    if not in_place(pool, transport):
        return PiecesSource([_staged(pool, table, tokens)])
    return PiecesSource(raw_pieces(pool, table, tokens)) if pool.data.device.type == "cpu" else device_pieces(pool, table, tokens)


def raw_sink(pool: Pool, table: Sequence[int], tokens: int, transport: str = "") -> ByteSink:
    """The sink of a raw transfer of a sequence. If it is a BufferSink, call put_raw afterwards."""
    if not in_place(pool, transport):
        return BufferSink(pool.layout.kept_bytes(tokens))
    return PiecesSink(raw_pieces(pool, table, tokens)) if pool.data.device.type == "cpu" else device_pieces(pool, table, tokens)


def put_raw(data: bytearray, pool: Pool, table: Sequence[int], tokens: int) -> None:
    """Write raw bytes from host memory into the blocks of a table."""
    held = torch.frombuffer(data, dtype=torch.uint8).to(pool.data.device)
    if not pool.layout.model.layer_windows:
        scatter(held, pool, table)
        return
    memory, at = pool.data.view(torch.uint8).reshape(-1), 0
    for start, size in kept_pieces(pool.layout, table, tokens):
        memory[start : start + size] = held[at : at + size]
        at += size


def _staged(pool: Pool, table: Sequence[int], tokens: int) -> memoryview:
    if pool.layout.model.layer_windows:
        memory = pool.data.view(torch.uint8).reshape(-1)
        return torch.cat([memory[start : start + size] for start, size in kept_pieces(pool.layout, table, tokens)]).cpu().numpy().data
    held = torch.empty(len(table) * pool.layout.block_bytes, dtype=torch.uint8, device=pool.data.device)
    gather(pool, table, held)
    return held.cpu().numpy().data

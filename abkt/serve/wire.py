"""Pool memory as the bytes of a raw transfer: whole blocks in token order, adjacent blocks as one piece."""

from __future__ import annotations

from collections.abc import Sequence

from abkt.kv.pool import Pool
from abkt.kv.runs import aligned_runs
from abkt.spec import KVLayout


def fingerprint(layout: KVLayout) -> str:
    """What both ends must agree on before a byte of KV moves; a mismatch is refused with both named."""
    model = layout.model
    shape = f"{model.layers} layers, {model.kv_heads} kv heads of {model.head_dim}, {model.dtype}, blocks of {layout.block_tokens}"
    return f"{model.name}: {shape}"


def raw_pieces(pool: Pool, table: Sequence[int]) -> list[memoryview]:
    """The memory of the blocks of table, one piece a run. Writable: the same pieces take a raw transfer in."""
    return [pool.run_bytes(run.source, run.blocks) for run in aligned_runs(table, range(len(table)))]

"""Importance and the lossless code, each beside a plain copy of the same bytes.

Rows: `importance` (the weights of all cells, from the last queries), `lossless_encode`, `lossless_decode` (the fixed code, of bfloat16)
and their `…_gbps`; and `lossless_ratio`, raw bytes over coded bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from abkt.bench.case import BenchCase
from abkt.bench.rows import BenchRow
from abkt.bench.timing import medians
from abkt.codec.importance import Importance
from abkt.codec.lossless.codec import LosslessCodec
from abkt.codec.lossless.oracle import UnitLayout

WINDOW, GROUP = 32, 4  # queries, and query heads per KV head
WIDTH = 3  # bits of a code of the lossless code


def rows(case: BenchCase, name: str, repeats: int) -> Iterator[BenchRow]:
    """Rows of one case, on its pool's device."""
    device, source = case.pool.data.device, case.pool.data[: len(case.table)]
    target = torch.empty_like(source)
    encode, decode, ratio = _lossless(case)
    functions: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "importance": _importance(case),
        "lossless_encode": encode,
        "lossless_decode": decode,
    }
    taken = medians(functions, device, repeats)
    copy, moved = taken.pop("copy"), len(case.table) * case.layout.block_bytes
    for what, seconds in taken.items():
        yield BenchRow(f"{what}/{name}", seconds / case.tokens * 1e9, "ns/token", copy / case.tokens * 1e9)
        if what != "importance":
            yield BenchRow(f"{what}_gbps/{name}", moved / seconds / 1e9, "GB/s of raw KV", moved / copy / 1e9)
    yield BenchRow(f"lossless_ratio/{name}", ratio, "of the coded bytes")


def _importance(case: BenchCase) -> Callable[[], object]:
    model, seen, cells = case.layout.model, Importance(WINDOW), case.cells(8)
    for layer in range(model.layers):
        query = torch.randn(GROUP * model.kv_heads, WINDOW, model.head_dim, device=case.pool.data.device, dtype=case.pool.dtype)
        seen.observe(layer, query, model.head_dim**-0.5)
    return lambda: seen.weights(case.pool, case.table, cells)


def _lossless(case: BenchCase) -> tuple[Callable[[], object], Callable[[], object], float]:
    """Functions that encode and decode all blocks of the table, one unit per (block, layer, kind); and raw bytes over coded bytes."""
    _, layers, kinds, heads, block_tokens, dim = case.layout.shape
    n, groups, data = heads * block_tokens * dim, layers * kinds, case.pool.data
    blocks = torch.tensor(case.table, device=data.device)
    starts = (blocks[:, None] * groups * n + torch.arange(groups, device=data.device) * n).reshape(-1)
    if data.device.type == "cpu":
        codec = LosslessCodec.best()
        windows = codec.windows(data, starts, n, groups)
        units = codec.encode(data, starts, n, groups, windows)
        ratio = len(starts) * units.layout.raw_bytes / len(units.body)
        return lambda: codec.encode(data, starts, n, groups, windows), lambda: codec.decode(units, case.other.data, starts), ratio
    from abkt.codec.lossless.launch import TritonLossless, UnitBuffers

    kernels = TritonLossless()
    buffers = UnitBuffers.of(UnitLayout(case.pool.dtype, n, WIDTH), kernels.windows(data, starts, n, groups, WIDTH), len(starts))
    kernels.encode_into(buffers, data, starts)
    held = buffers.units()
    ratio = len(starts) * buffers.layout.raw_bytes / len(held.body)
    return lambda: kernels.encode_into(buffers, data, starts), lambda: kernels.decode_into(held, case.other.data, starts), ratio

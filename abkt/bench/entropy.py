"""The entropy coder on a CPU: the time to code and to expand all passes of a depth, beside a plain copy of the same bytes.

Rows: `entropy_encode`, `entropy_decode` and their `…_gbps`; and `entropy_bits`, bits per value on the wire without the statistics. Strips
are coded without differences. An encode measures its statistics too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from abkt.bench.case import BenchCase
from abkt.bench.rows import BenchRow
from abkt.bench.timing import medians
from abkt.codec.cells import Cells
from abkt.codec.coder import CodedSequence, StreamPrefix
from abkt.codec.entropy.coder import EntropyCoder
from abkt.codec.header import slot_offsets

DEPTH = 4  # bits


def rows(case: BenchCase, name: str, repeats: int) -> Iterator[BenchRow]:
    """Rows of one case, which must have tokens between its edges."""
    device, source, cells = case.pool.data.device, case.pool.data[: len(case.table)], case.cells(DEPTH)
    target = torch.empty_like(source)
    work = _Compiled(case, cells)
    functions: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "entropy_encode": work.encode,
        "entropy_decode": work.decode,
    }
    work.encode()
    coded_bytes = len(work.arrive())
    taken = medians(functions, device, repeats)
    tokens = sum(cells.tile_lengths)
    copy = taken.pop("copy") * tokens / (len(case.table) * case.layout.block_tokens)
    raw_bytes = tokens * case.layout.model.kv_bytes_per_token
    for what, seconds in taken.items():
        yield BenchRow(f"{what}/{name}", seconds / tokens * 1e9, "ns/token", copy / tokens * 1e9)
        yield BenchRow(f"{what}_gbps/{name}", raw_bytes / seconds / 1e9, "GB/s of raw KV", raw_bytes / copy / 1e9)
    yield BenchRow(f"entropy_bits/{name}", 8 * coded_bytes / int(cells.values.sum()), "bits per value")


class _Compiled:
    """The entropy coder's encode and expand of a case, on the CPU."""

    def __init__(self, case: BenchCase, cells: Cells) -> None:
        self._case, self._cells, self._blocks = case, cells, cells.coded_table(case.table)
        self._coder = EntropyCoder(None, np.zeros(cells.shape[:3], dtype=np.int64))
        self._coded: CodedSequence | None = None

    def encode(self) -> None:
        self._coded = self._coder.encode(self._case.pool.data, self._blocks, self._cells)

    def arrive(self) -> torch.Tensor:
        """Let `decode` expand what was coded; returns all passes."""
        assert self._coded
        coded, cells, sizes = self._coded, self._coded.cells, self._coded.sizes
        present = np.full(self._cells.count, self._cells.passes, dtype=np.int8)
        whole = (cells.body.numpy(), slot_offsets(sizes), sizes, present, cells.classes, coded.levels, coded.statistics)
        self._arrived = StreamPrefix(*whole)
        return cells.body

    def decode(self) -> None:
        self._coder.expand(self._arrived, self._case.other.data, self._blocks, self._cells)

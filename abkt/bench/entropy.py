"""The entropy coder: the time to code and to expand all passes of a depth, beside a plain copy of the same bytes, on the pool's device.

Rows: `entropy_encode`, `entropy_decode` and their `…_gbps`; and `entropy_bits`, bits per value on the wire without the statistics. Strips
are coded without differences. On a CPU an encode measures its statistics too. On a GPU the time is that of the launches, with given
statistics.
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
from abkt.codec.entropy.stats import Stats, strip_stats
from abkt.codec.fixed.oracle import tokens_of
from abkt.codec.header import slot_offsets

DEPTH = 4  # bits


def rows(case: BenchCase, name: str, repeats: int) -> Iterator[BenchRow]:
    """Rows of one case, which must have tokens between its edges."""
    device, source, cells = case.pool.data.device, case.pool.data[: len(case.table)], case.cells(DEPTH)
    target = torch.empty_like(source)
    work = _Compiled(case, cells) if device.type == "cpu" else _Enqueued(case, cells)
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


def check(case: BenchCase) -> int:
    """Check the kernels against the compiled code on a case; a short one is enough. Returns its number of cells. Raises ValueError if any
    differs."""
    device, cells = case.pool.data.device, case.cells(DEPTH)
    ours, theirs = _Enqueued(case, cells), _Compiled(case, cells)
    ours.encode()
    theirs.encode()
    if not torch.equal(ours.arrive().cpu(), theirs.arrive()):
        raise ValueError(f"entropy coder on {device}: bytes differ from those of the CPU")
    ours.decode()
    found = case.other.data.clone()
    theirs.decode()
    if not torch.equal(found, case.other.data):
        raise ValueError(f"entropy coder on {device}: expanded values differ from those of the CPU")
    return cells.count


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


class _Enqueued:
    """The entropy coder's encode and expand of a case by the kernels (entropy/gpu/launch.py), with one set of statistics."""

    def __init__(self, case: BenchCase, cells: Cells) -> None:
        from abkt.codec.entropy.gpu.launch import EntropyEncoding, EntropyExpansion
        from abkt.codec.entropy.gpu.strips import Strips

        self._case, data, blocks = case, case.pool.data, torch.tensor(cells.coded_table(case.table))
        layers, kinds, heads, _ = cells.shape
        every = []
        for layer, kind in np.ndindex(layers, kinds):
            held = data[blocks.to(data.device), layer, kind]
            every.append(strip_stats(tokens_of(held, cells.dim).float().cpu().numpy(), data.dtype))
        centre, scale = np.concatenate([stats.centre for stats in every]), np.concatenate([stats.log_scale for stats in every])
        joined = Stats(centre, scale, np.concatenate([stats.rotates for stats in every]))
        groups = [Strips.of(range(layers * kinds * heads), joined, data.device)]
        self._encoding = EntropyEncoding(cells, groups, None, data.device)
        self._expansion = EntropyExpansion(cells, groups, None, data.device)
        for work in (self._encoding, self._expansion):
            work.table.copy_(blocks)
        self._expansion.present.fill_(cells.passes)

    def encode(self) -> None:
        self._encoding.enqueue(self._case.pool.data)
        self._encoding.copy_report()

    def arrive(self) -> torch.Tensor:
        """Let `decode` expand what was coded; returns all passes."""
        encoding, expansion = self._encoding, self._expansion
        expansion.sizes[1:].copy_(encoding.lengths)
        expansion.offsets[1:].copy_(encoding.ends - encoding.lengths)
        expansion.classes.copy_(encoding.report.classes)
        return encoding.body[: int(encoding.ends[-1, -1])]

    def decode(self) -> None:
        self._expansion.enqueue(self._encoding.body, self._case.other.data)

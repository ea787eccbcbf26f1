"""The entropy coder enqueued on a GPU, for given statistics. Launches never wait for the GPU, so a CUDA graph can hold them.

Strips of equal levels of differences (entropy/stats.py) share their launches. The lengths of passes follow from the data, so only the
device knows the size of a stream; one copy brings them to the host, with the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import triton

from abkt.codec.cells import WIDTHS, Cells
from abkt.codec.coder import VERBATIM
from abkt.codec.entropy.gpu.encode_kernels import code_cells, list_outliers, measure_cells, measure_errors
from abkt.codec.entropy.gpu.expand_kernels import fill_cells, read_heads
from abkt.codec.entropy.gpu.pass_kernels import decode_pass, encode_pass, join_passes, pack_pass, unpack_pass
from abkt.codec.entropy.gpu.strips import EntropyTables, Strips
from abkt.codec.entropy.oracle import OUTLIERS_IN, max_pass_bytes
from abkt.codec.entropy.plan import FINER, FINEST, PASSES
from abkt.codec.fixed.enqueue import Report
from abkt.codec.fixed.quantize import LIMIT

STREAMS = 16  # rANS streams per program
BYTES = 1024  # that a program handles at a time in a plain pass or a copy
WARPS = 4
MOST_VALUES = OUTLIERS_IN * 32_767  # in a cell, so that the number of an outlier fits its code


class _Launches:
    """The parts that encoding and expansion share. groups: all strips, grouped by equal levels. rotation: of
    stats.rotation_of, float32 [coded tokens, 2, dim / 2]; None if no centre rotates. table: int64, the coded part of a block table, which
    the caller writes before `enqueue`."""

    def __init__(self, cells: Cells, groups: Sequence[Strips], rotation: torch.Tensor | None, device: torch.device) -> None:
        if cells.tile_tokens * cells.dim > MOST_VALUES:
            raise ValueError(f"tile of {cells.tile_tokens} tokens of {cells.dim} channels; kernels take {MOST_VALUES} values at most")
        if rotation is None and any(group.any_rotates for group in groups):
            raise ValueError("a strip's centre rotates with the position; give rotation=rotation_of(positions, dim, theta)")
        self.cells, self.groups, self.tables = cells, groups, EntropyTables.on(device)
        self.table = torch.zeros(cells.coded_blocks, dtype=torch.int64, device=device)
        self.metas = torch.zeros(cells.count, dtype=torch.uint8, device=device)
        self.head_sizes = torch.zeros(cells.count, dtype=torch.int64, device=device)
        self.codes = torch.zeros(cells.count, cells.tile_tokens * cells.dim, dtype=torch.int16, device=device)
        self._outliers = torch.zeros(cells.count, dtype=torch.int32, device=device)
        self._rotation = torch.zeros(1, device=device) if rotation is None else rotation.to(device)

    @property
    def _extent(self) -> tuple[int, int]:
        """The number of tiles, and the number of tokens in all of them."""
        return self.cells.shape[3], sum(self.cells.tile_lengths)

    def _place(self, data: torch.Tensor, group: Strips) -> tuple[torch.Tensor, ...]:
        return data, self.table, group.numbers, group.centres, group.rotates, self._rotation

    def _programs(self, group: Strips) -> int:
        return len(group.numbers) * self.cells.shape[3]


class EntropyEncoding(_Launches):
    """Buffers to encode sequences of one shape, `cells`, again and again. body: uint8, all passes of all cells end to end. lengths, ends:
    int64 [passes, cells], the bytes of each pass, and their running sum. report: as in enqueue.Encoding; classes are 0 or VERBATIM. The
    body, and the slots that it is joined from, have capacity for the worst case, one byte per value and pass."""

    def __init__(self, cells: Cells, groups: Sequence[Strips], rotation: torch.Tensor | None, device: torch.device) -> None:
        super().__init__(cells, groups, rotation, device)
        strips, shape = int(np.prod(cells.shape[:3])), (cells.passes, cells.count)
        self.capacity = max_pass_bytes(cells.tile_tokens, cells.dim)
        self.body = torch.zeros(cells.passes * cells.count * self.capacity, dtype=torch.uint8, device=device)
        self.lengths, self.ends = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2))
        self.report = Report.of(cells, device)
        self.host = Report.of(cells, torch.device("cpu"), pinned=device.type == "cuda")
        self.host_lengths = torch.zeros(shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._slots, self._streams = torch.zeros_like(self.body), torch.zeros_like(self.lengths)
        self._sums, self._spreads = torch.zeros(cells.count, cells.dim, device=device), torch.zeros(cells.count, device=device)
        levels = np.zeros(strips, dtype=np.int64)
        for group in groups:
            levels[group.numbers.cpu().numpy()] = group.levels
        capacities = [[max_pass_bytes(tokens >> level, cells.dim << level) for tokens in cells.tile_lengths] for level in levels.tolist()]
        self._capacities = torch.tensor(capacities, dtype=torch.int64, device=device).view(-1)
        self._tile_lengths = torch.tensor(cells.tile_lengths, dtype=torch.float64, device=device)
        self._heads = torch.zeros(cells.count, 3 + 8 * (cells.tile_tokens * cells.dim // OUTLIERS_IN), dtype=torch.uint8, device=device)

    def enqueue(self, data: torch.Tensor) -> None:
        """Code the blocks of `table` in a pool's tensor."""
        cells, report, lookup = self.cells, self.report, self.tables
        if not cells.count:
            return
        report.whole.zero_()
        for group in self.groups:
            shape, given = constants(group, cells), (self.codes, self.metas, report.classes)
            place, plan = self._place(data, group), (group.steps, group.kinds, group.starts)
            programs, extent = (self._programs(group),), (cells.count // cells.shape[3], *self._extent)
            measure_cells[programs](
                *place, group.steps, group.deviations, lookup.rules, self.metas, report.classes, self._sums, *extent,
                BOUND=LIMIT[data.dtype], **shape,
            )  # fmt: skip
            code_cells[programs](
                *place, *plan, lookup.rules, *given, self._outliers, self._sums, self._spreads, *extent,
                PASSES=cells.passes, LAST=4 << (FINEST - FINER[cells.passes - 1]), **shape,
            )  # fmt: skip
            list_outliers[programs](
                *place, *given, self._outliers, self._heads, self.head_sizes, *extent, self._heads.shape[1], **shape
            )  # fmt: skip
            measure_errors[(self._programs(group) * (cells.passes + 1),)](
                *place, *plan, lookup.points, *given, report.errors, cells.count, *extent, PASSES=cells.passes, **shape
            )  # fmt: skip
            for constant in passes_of(group, cells):
                self._code(group, constant)
        self._join()

    def copy_report(self) -> None:
        """Enqueue the copies of the report and of the lengths to the host."""
        self.host.whole.copy_(self.report.whole, non_blocking=True)
        self.host_lengths.copy_(self.lengths, non_blocking=True)

    def _code(self, group: Strips, constant: dict[str, int]) -> None:
        cells, programs = self.cells, self._programs(group)
        plan, classes = (group.listed, group.counts, group.coded), self.report.classes
        encode_pass[(triton.cdiv(programs, STREAMS),)](
            self.codes, group.numbers, classes, self.metas, *plan, self.tables.skew, self.tables.coding, self._slots.view(torch.int16),
            self._streams, cells.count, programs, *self._extent, self.capacity // 2, STREAMS=STREAMS, **constant,
        )  # fmt: skip
        if constant["PASS"] > 2:  # the first two are always coded
            pack_pass[(programs,)](
                self.codes, group.numbers, classes, *plan, self._slots, self._streams, cells.count, *self._extent, self.capacity,
                BYTES=BYTES, **constant,
            )  # fmt: skip

    def _join(self) -> None:
        sizes, report = self._streams, self.report
        self.lengths.copy_(sizes)
        self.lengths[0] += self.head_sizes
        report.classes.masked_fill_((self.lengths > self._capacities).any(0), VERBATIM)
        verbatim = report.classes == VERBATIM
        for part in (self.lengths, sizes, self.head_sizes, report.errors):
            part.masked_fill_(verbatim, 0)
        self.ends.view(-1).copy_(self.lengths.view(-1).cumsum(0))
        join_passes[(sizes.numel(),)](
            self._slots, sizes, self._heads, self.head_sizes, self.ends, self.body, self.cells.count, self.capacity, self._heads.shape[1],
            BYTES=BYTES, num_warps=WARPS,
        )  # fmt: skip
        report.deviation.copy_(self._deviation(~verbatim))

    def _deviation(self, kept: torch.Tensor) -> torch.Tensor:
        """Squared deviation from channel means over all tiles of a (layer, kind, head), without verbatim cells: [layers, kinds, heads]."""
        shape = self.cells.shape
        counted = (self._tile_lengths * kept.view(shape))[..., None]
        tile_means = self._sums.double().view(*shape, -1) / self._tile_lengths[:, None]
        means = (tile_means * counted).sum(3, keepdim=True) / counted.sum(3, keepdim=True).clamp_min(1)
        return (counted * (tile_means - means).square()).sum((3, 4)) + (self._spreads.double() * kept).view(shape).sum(3)


class EntropyExpansion(_Launches):
    """Buffers to expand sequences of one shape, `cells`. The caller fills these before `enqueue`: offsets, sizes: int64 [passes + 1,
    cells], the place and the bytes of each slot on the wire; present: int8 [cells], how many passes arrived; classes: uint8 [cells]. The
    result is damaged: uint8 [cells], 1 where no encoder wrote the bytes."""

    def __init__(self, cells: Cells, groups: Sequence[Strips], rotation: torch.Tensor | None, device: torch.device) -> None:
        super().__init__(cells, groups, rotation, device)
        self.offsets, self.sizes = (torch.zeros(cells.passes + 1, cells.count, dtype=torch.int64, device=device) for _ in range(2))
        self.present = torch.zeros(cells.count, dtype=torch.int8, device=device)
        self.classes, self.damaged = (torch.zeros(cells.count, dtype=torch.uint8, device=device) for _ in range(2))

    def enqueue(self, wire: torch.Tensor, data: torch.Tensor) -> None:
        """Write the passes in `wire` (uint8, on the pool's device) into the blocks of `table` in the pool's tensor `data`. Blocks of
        damaged cells keep their content. If no cell may appear without the others, expand into blocks that nothing reads yet."""
        cells, lookup = self.cells, self.tables
        if not cells.count:
            return
        for part in (self.codes, self.damaged, self._outliers):
            part.zero_()
        for group in self.groups:
            programs, arrived = self._programs(group), (self.offsets, self.sizes)
            shared = {"LEVELS": group.levels, "TILE": cells.tile_tokens, "DIM": cells.dim}
            read_heads[(programs,)](
                data, group.numbers, self.classes, self.present, wire, len(wire), *arrived, self.head_sizes, self.metas, self._outliers,
                self.damaged, cells.count, *self._extent, **shared, num_warps=WARPS,
            )  # fmt: skip
            for constant in passes_of(group, cells):
                decode_pass[(triton.cdiv(programs, STREAMS),)](
                    self.codes, group.numbers, self.classes, self.metas, self.present, group.listed, group.counts, group.coded, lookup.skew,
                    lookup.owner, lookup.intervals, wire, len(wire), *arrived, self.head_sizes, self.damaged, cells.count, programs,
                    *self._extent, STREAMS=STREAMS, **constant,
                )  # fmt: skip
                if constant["PASS"] > 2:
                    unpack_pass[(programs,)](
                        self.codes, group.numbers, self.classes, self.present, group.listed, group.counts, group.coded, wire, len(wire),
                        *arrived, self.damaged, cells.count, *self._extent, BYTES=BYTES, **constant,
                    )  # fmt: skip
            fill_cells[(programs,)](
                *self._place(data, group), group.steps, group.kinds, group.starts, lookup.points, self.codes, self.metas, self.classes,
                self.present, wire, self.offsets, self._outliers, self.damaged,
                cells.count, cells.count // cells.shape[3], *self._extent, **constants(group, cells),
            )  # fmt: skip


def constants(group: Strips, cells: Cells) -> dict[str, int]:
    """Compile-time arguments and launch options of the kernels that access the pool. A thread has eight values, of all pieces of a row
    together."""
    sides = 2 if group.any_rotates else 1
    columns = triton.next_power_of_2(cells.dim // sides)
    a_row = columns * sides << group.levels
    return {
        "LEVELS": group.levels, "ROTATES": group.any_rotates, "TILE": cells.tile_tokens, "BLOCK": cells.layout.block_tokens,
        "DIM": cells.dim, "PARTS": cells.layout.model.head_dim // cells.dim,
        "ROWS": max(1, 8 * 32 * WARPS // a_row, 32 * WARPS // columns), "COLS": columns,
        "num_warps": WARPS, "enable_fp_fusion": False,
    }  # fmt: skip


def passes_of(group: Strips, cells: Cells) -> Iterator[dict[str, int]]:
    """Compile-time arguments and launch options of the kernels between codes and bytes, for one pass after another. PASSES: how many passes
    Strips describe."""
    for index in range(cells.passes):
        shared = {"PASSES": PASSES, "LEVELS": group.levels, "TILE": cells.tile_tokens, "DIM": cells.dim, "num_warps": WARPS}
        yield {"PASS": index + 1, "WIDTH": WIDTHS[index], "SHIFT": FINEST - FINER[index], **shared}

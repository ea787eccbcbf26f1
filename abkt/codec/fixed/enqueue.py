"""The fixed coder enqueued on a GPU. Buffers are allocated once and nothing waits for the GPU, so a CUDA graph can hold every launch.

The host receives the result of an encode as a *report*: errors, classes and deviations of all cells, by one asynchronous copy into pinned
memory. The copy may be enqueued on a CUDA stream of its own, after the kernels; the host waits for it when it decides the order. The slots
stay on the device until they are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import triton

from abkt.codec.cells import ALIGN, Cells
from abkt.codec.coder import VERBATIM
from abkt.codec.fixed.arena import Arena
from abkt.codec.fixed.centre import centres_of_first_tile
from abkt.codec.fixed.gpu.encode import encode_cells, scratch_words
from abkt.codec.fixed.gpu.expand import expand_cells
from abkt.codec.fixed.quantize import LIMIT, LIMITS, MARGINS, SHARES
from abkt.spec import DTYPE_BYTES

WARPS = 2  # that share a tile
TILES_AT_ONCE = 8  # that a multiprocessor codes: 16 warps of it, and tiles of 32 KiB that about fit its first-level cache
RULES = np.array([*LIMITS, *(share for row in SHARES for share in row)], dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Report:
    """The fields of CodedCells that the host needs, as views of one uint8 tensor (`whole`): errors [passes + 1, cells] float32, deviation
    [layers, kinds, heads] float64, classes [cells] uint8."""

    whole: torch.Tensor
    errors: torch.Tensor
    deviation: torch.Tensor
    classes: torch.Tensor

    @classmethod
    def of(cls, cells: Cells, device: torch.device, pinned: bool = False) -> Report:
        strips, errors = int(np.prod(cells.shape[:3])), (cells.passes + 1) * cells.count
        whole = torch.zeros(8 * strips + 4 * errors + cells.count, dtype=torch.uint8, device=device, pin_memory=pinned)
        deviation, rest = whole[: 8 * strips].view(torch.float64), whole[8 * strips :]
        return cls(
            whole,
            rest[: 4 * errors].view(torch.float32).view(cells.passes + 1, cells.count),
            deviation.view(cells.shape[:3]),
            rest[4 * errors :],
        )


class Encoding:
    """Buffers to encode sequences of one shape, `cells`, again and again. table: int32, the coded part of a block table. centres: float32,
    as in Arrived. body: uint8, every slot. report, host: the report on the device, and its copy on the host.

    arena: where the large buffers come from; encodings that share one must not be used at the same time. None: memory of its own.
    """

    def __init__(self, cells: Cells, device: torch.device, arena: Arena | None = None) -> None:
        layers, kinds, heads, _ = cells.shape
        take, given = (arena or Arena(device)).take, constants(cells)
        self.cells = cells
        self.table = torch.zeros(cells.coded_blocks, dtype=torch.int32, device=device)
        self.centres = torch.zeros(layers if kinds > 1 else 0, heads, cells.dim, device=device)
        self.body = take("body", (cells.body_bytes,), torch.uint8)
        self.report = Report.of(cells, device)
        self.host = Report.of(cells, torch.device("cpu"), pinned=device.type == "cuda")
        self._sums, self._spreads = take("sums", (cells.count, cells.dim), torch.float32), torch.zeros(cells.count, device=device)
        self._programs = programs_of(device)
        words = scratch_words(cells.tile_tokens, given["ROWS"], given["COLS"], span_of(cells))
        self._scratch = take("scratch", (self._programs * words,), torch.float32)
        self._starts, self._block_values = torch.zeros(cells.coded_blocks, dtype=torch.int64, device=device), block_values(cells)
        self._offsets, self._rules = torch.from_numpy(cells.offsets).to(device), torch.from_numpy(RULES).to(device)
        self._lengths = torch.tensor(cells.tile_lengths, dtype=torch.float64, device=device)

    def enqueue(self, data: torch.Tensor, with_centres: bool = True) -> None:
        """Code the blocks of `table` in a pool's tensor. with_centres: compute `centres` from the first tile; else they are used as they
        are.

        Slots of a verbatim cell keep their old content; they are never sent.
        """
        cells = self.cells
        layers, kinds, heads, _ = cells.shape
        if not cells.count:
            return
        if with_centres and kinds > 1:
            self.centres.copy_(centres_of_first_tile(data, self.table, cells))
        for part in (self.report.whole, self._sums, self._spreads, *((self.body,) if padded(cells) else ())):
            part.zero_()
        outer, inner = MARGINS.get(cells.depth_bits, (0.0, 0.0))
        torch.mul(self.table, self._block_values, out=self._starts)
        given = (self._starts, self.centres, self._offsets, self._rules, self.body, self._scratch, self.report.errors, self.report.classes)
        told = (*given, self._sums, self._spreads, *sizes_of(cells))
        for kind, (first, here, full) in product(range(kinds), launches(cells)):
            count = layers * heads * here
            encode_cells[(min(count, self._programs),)](
                data, *told, count, first, here, KEY=kind == 0, FULL=full, BOUND=LIMIT[data.dtype], OUTER=outer, INNER=inner,
                SPAN=span_of(cells), TOKENS=tokens_at_once(cells), **constants(cells),
            )  # fmt: skip
        self.report.deviation.copy_(self._deviation())

    def copy_report(self) -> None:
        """Enqueue the copy of the report to the host."""
        self.host.whole.copy_(self.report.whole, non_blocking=True)

    def _deviation(self) -> torch.Tensor:
        """Squared deviation from channel means over all tiles of a (layer, kind, head): [layers, kinds, heads]."""
        shape = self.cells.shape
        kept = self.report.classes.view(shape) != VERBATIM
        counted = (self._lengths * kept)[..., None]  # tokens of each tile, 0 where the cell is verbatim
        tile_means = self._sums.double().view(*shape, -1) / self._lengths[:, None]
        means = (tile_means * counted).sum(3, keepdim=True) / counted.sum(3, keepdim=True).clamp_min(1)
        return (counted * (tile_means - means).square()).sum((3, 4)) + (self._spreads.double().view(shape) * kept).sum(3)


class Expansion:
    """Buffers to expand sequences of one shape, `cells`. The caller fills them before `enqueue`: table, centres: as in Encoding; offsets:
    [passes + 1, cells] int64, present: [cells] int8, classes: [cells] uint8, as in Arrived."""

    def __init__(self, cells: Cells, device: torch.device) -> None:
        layers, kinds, heads, _ = cells.shape
        self.cells = cells
        self.table = torch.zeros(cells.coded_blocks, dtype=torch.int32, device=device)
        self.centres = torch.zeros(layers if kinds > 1 else 0, heads, cells.dim, device=device)
        self.offsets = torch.zeros(cells.passes + 1, cells.count, dtype=torch.int64, device=device)
        self.present = torch.zeros(cells.count, dtype=torch.int8, device=device)
        self.classes = torch.zeros(cells.count, dtype=torch.uint8, device=device)
        self._rules = torch.from_numpy(RULES).to(device)
        self._starts, self._block_values = torch.zeros(cells.coded_blocks, dtype=torch.int64, device=device), block_values(cells)

    def enqueue(self, wire: torch.Tensor, data: torch.Tensor) -> None:
        """Write the passes in `wire` (uint8, on the pool's device) into the blocks of `table` in the pool's tensor `data`."""
        layers, kinds, heads, _ = self.cells.shape
        torch.mul(self.table, self._block_values, out=self._starts)
        given = (self._starts, self.centres, self.offsets, self._rules, wire, self.present, self.classes, *sizes_of(self.cells))
        for kind, (first, here, full) in product(range(kinds if self.cells.count else 0), launches(self.cells)):
            expand_cells[(layers * heads * here,)](data, *given, first, here, KEY=kind == 0, FULL=full, **constants(self.cells))


def captured(enqueue: Callable[[], object]) -> Callable[[], None]:
    """`enqueue` as a CUDA graph: calling the result replays its launches on the same buffers. Needs a GPU."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        enqueue()  # kernels are compiled and loaded outside of the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        enqueue()
    return graph.replay


def constants(cells: Cells) -> dict[str, int]:
    """Compile-time arguments and launch options of both kernels. A lane holds eight channels, 16 bytes of a pool of 16-bit values, of every
    eighth of the tile; WARPS warps share a tile."""
    columns = triton.next_power_of_2(cells.dim)
    rows = min(triton.next_power_of_2(-(-cells.tile_tokens // 8)), max(1, 256 * WARPS // columns))
    return {
        "KINDS": cells.shape[1],
        "HEADS": cells.shape[2],
        "PASSES": cells.passes,
        "TILE": cells.tile_tokens,
        "BLOCK": cells.layout.block_tokens,
        "DIM": cells.dim,
        "PARTS": cells.layout.model.head_dim // cells.dim,
        "ROWS": rows,
        "COLS": columns,
        "num_warps": max(1, min(WARPS, rows * columns // 256)),
        "maxnreg": 128,  # 16 warps of a multiprocessor
        "enable_fp_fusion": True,  # harmless: the products that are added to something are exact
    }


def span_of(cells: Cells) -> int:
    """The groups for which a row of scratch has room."""
    return int(triton.next_power_of_2(max(cells.dim, cells.tile_tokens)))


def tokens_at_once(cells: Cells) -> int:
    """Tokens of V that are surveyed at once."""
    columns = int(triton.next_power_of_2(cells.dim))
    return min(int(triton.next_power_of_2(cells.tile_tokens)), max(1, 256 * WARPS // min(columns, 32)))


def launches(cells: Cells) -> list[tuple[int, int, bool]]:
    """First tile, number of tiles, and whether they are full, of each launch. Full tiles have a faster kernel, if every run of ROWS tokens
    in it lies in one block."""
    rows, tile, lengths = constants(cells)["ROWS"], cells.tile_tokens, cells.tile_lengths
    full = sum(length == tile for length in lengths) if tile % (8 * rows) == 0 and cells.layout.block_tokens % rows == 0 else 0
    return [launch for launch in ((0, full, True), (full, len(lengths) - full, False)) if launch[1]]


def programs_of(device: torch.device) -> int:
    """Programs of an encode: as many as can run at once, so that the tiles that they work on stay in the caches."""
    return torch.cuda.get_device_properties(device).multi_processor_count * TILES_AT_ONCE if device.type == "cuda" else 2


def padded(cells: Cells) -> bool:
    """Whether some slot is longer than what the kernels write into it, so that its end must be 0 before."""
    lengths, meta = np.array(cells.tile_lengths), DTYPE_BYTES[cells.layout.model.dtype] + 2
    used = np.concatenate((-(-lengths // 8) * cells.dim, lengths * meta, [cells.dim * meta]))
    return bool((used % ALIGN).any())


def block_values(cells: Cells) -> int:
    """KV values of a block."""
    return int(np.prod(cells.layout.shape[1:]))


def sizes_of(cells: Cells) -> Sequence[int]:
    return cells.count, cells.shape[3], cells.coded_blocks * cells.layout.block_tokens

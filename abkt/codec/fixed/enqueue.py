"""The fixed coder enqueued on a GPU. Buffers are allocated once and nothing waits for the GPU, so a CUDA graph can hold every launch.

The host receives the result of an encode as a *report*: errors, classes and deviations of all cells, by one asynchronous copy into pinned
memory. The copy may be enqueued on a CUDA stream of its own, after the kernels; the host waits for it when it decides the order. The slots
stay on the device until they are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton

from abkt.codec.cells import Cells
from abkt.codec.coder import VERBATIM
from abkt.codec.fixed.centre import centres_of_first_tile
from abkt.codec.fixed.kernels import encode_cells, expand_cells
from abkt.codec.fixed.quantize import LIMIT, LIMITS, MARGINS, SHARES

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
    """Buffers to encode sequences of one shape, `cells`, again and again. table: int64, the coded part of a block table. centres: float32,
    as in Arrived. body: uint8, every slot. report, host: the report on the device, and its copy on the host."""

    def __init__(self, cells: Cells, device: torch.device) -> None:
        layers, kinds, heads, _ = cells.shape
        self.cells = cells
        self.table = torch.zeros(cells.coded_blocks, dtype=torch.int64, device=device)
        self.centres = torch.zeros(layers if kinds > 1 else 0, heads, cells.dim, device=device)
        self.body = torch.zeros(cells.body_bytes, dtype=torch.uint8, device=device)
        self.report = Report.of(cells, device)
        self.host = Report.of(cells, torch.device("cpu"), pinned=device.type == "cuda")
        self._sums, self._spreads = torch.zeros(cells.count, cells.dim, device=device), torch.zeros(cells.count, device=device)
        self._offsets, self._rules = torch.from_numpy(cells.offsets).to(device), torch.from_numpy(RULES).to(device)
        self._lengths = torch.tensor(cells.tile_lengths, dtype=torch.float64, device=device)

    def enqueue(self, data: torch.Tensor, with_centres: bool = True) -> None:
        """Code the blocks of `table` in a pool's tensor. with_centres: compute `centres` from the first tile; else they are used as they
        are.

        Slots of a verbatim cell keep their old content; they are never sent.
        """
        cells = self.cells
        layers, kinds, heads, tiles = cells.shape
        if not cells.count:
            return
        if with_centres and kinds > 1:
            self.centres.copy_(centres_of_first_tile(data, self.table, cells))
        for part in (self.report.whole, self._sums, self._spreads):
            part.zero_()
        outer, inner = MARGINS.get(cells.depth_bits, (0.0, 0.0))
        given = (self.table, self.centres, self._offsets, self._rules, self.body, self.report.errors, self.report.classes)
        for kind in range(kinds):
            encode_cells[(layers * heads * tiles,)](
                data, *given, self._sums, self._spreads, *sizes_of(cells), KEY=kind == 0,
                BOUND=LIMIT[data.dtype], OUTER=outer, INNER=inner, **constants(cells),
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
        self.table = torch.zeros(cells.coded_blocks, dtype=torch.int64, device=device)
        self.centres = torch.zeros(layers if kinds > 1 else 0, heads, cells.dim, device=device)
        self.offsets = torch.zeros(cells.passes + 1, cells.count, dtype=torch.int64, device=device)
        self.present = torch.zeros(cells.count, dtype=torch.int8, device=device)
        self.classes = torch.zeros(cells.count, dtype=torch.uint8, device=device)
        self._rules = torch.from_numpy(RULES).to(device)

    def enqueue(self, wire: torch.Tensor, data: torch.Tensor) -> None:
        """Write the passes in `wire` (uint8, on the pool's device) into the blocks of `table` in the pool's tensor `data`."""
        layers, kinds, heads, tiles = self.cells.shape
        given = (self.table, self.centres, self.offsets, self._rules, wire, self.present, self.classes, *sizes_of(self.cells))
        for kind in range(kinds if self.cells.count else 0):
            expand_cells[(layers * heads * tiles,)](data, *given, KEY=kind == 0, **constants(self.cells))


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
    """Compile-time arguments and launch options of both kernels."""
    head_dim, columns = cells.layout.model.head_dim, triton.next_power_of_2(cells.dim)
    rows = triton.next_power_of_2(-(-cells.tile_tokens // 8))
    return {
        "PASSES": cells.passes,
        "TILE": cells.tile_tokens,
        "BLOCK": cells.layout.block_tokens,
        "DIM": cells.dim,
        "PARTS": head_dim // cells.dim,
        "ROWS": rows,
        "COLS": columns,
        "num_warps": max(1, min(16, rows * columns // 256)),  # eight values per thread: 16 bytes of a pool of 16-bit values
        "enable_fp_fusion": True,  # harmless: the products that are added to something are exact
    }


def sizes_of(cells: Cells) -> Sequence[int]:
    layers, kinds, heads, tiles = cells.shape
    return cells.count, layers * kinds * heads, kinds, heads, tiles, cells.coded_blocks * cells.layout.block_tokens

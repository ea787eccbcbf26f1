"""A stream: coded cells in an order, any prefix of which ends at a cut; and the same cells in another order, with nothing coded again.

The order is decided by weights, and they may come late, or change: a layer that leaves while prefill still runs has flat ones, and at the
end of prefill its last queries say what matters. Slots, and the checksum of each, stay; the header and the tables of checksums are made
anew. What lies where on the wire is header.py's.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.fixed.backend import EXACT, Backend, CodedCells
from abkt.codec.header import ORDERS, CoderName, StreamHeader
from abkt.codec.order import Bands, curve_of, distortions, slope_bands, uniform_bands, weighted_distortion
from abkt.policy.view import Curve, Order


@dataclass(frozen=True, slots=True)
class StreamParts:
    """What every order of a stream shares. lengths, levels: as in Header. edges, raw: what follows the header. sums: [passes + 1, cells]
    uint32, the CRC-32 of each slot, 0 where a cell is exact."""

    cells: Cells
    coder: CoderName
    coded: CodedCells
    lengths: np.ndarray | None
    levels: np.ndarray | None
    edges: bytes
    raw: bytes
    sums: np.ndarray


@dataclass(frozen=True, slots=True)
class Stream:
    """One encoded sequence. slope, uniform: what each cut costs and leaves in either order. ends: the byte where cut i ends.

    head: header, edges and exact cells. sums: the tables of checksums of all sections, one after the other. body: uint8, every slot of
    every pass, in storage order (cells.py). parts: what it shares with its other orders.
    """

    header: StreamHeader
    slope: Curve
    uniform: Curve
    ends: tuple[int, ...]
    head: memoryview
    sums: memoryview
    body: memoryview
    parts: StreamParts = field(repr=False)
    _pieces: tuple[list[int], list[int], list[bool]] = field(init=False, repr=False)
    """Of each contiguous piece behind the head: where it starts on the wire, where in its memory, and whether that is `sums`."""

    def __post_init__(self) -> None:
        at, header = self.header.sections, self.header
        tables = np.array([at.table_bytes(s) for s in range(len(self.ends))], dtype=np.int64)
        starts = np.concatenate((at.tables, at.starts))
        offsets = np.concatenate((tables.cumsum() - tables, header.offsets.reshape(-1)[at.order]))
        sizes = np.concatenate((tables, header.sizes.reshape(-1)[at.order]))
        is_table = np.arange(len(starts)) < len(tables)
        wire = np.argsort(starts, kind="stable")
        wire = wire[sizes[wire] > 0]
        starts, offsets, sizes, is_table = (a[wire] for a in (starts, offsets, sizes, is_table))
        broken = np.ones(len(starts), dtype=bool)
        broken[1:] = (offsets[1:] != offsets[:-1] + sizes[:-1]) | is_table[1:] | is_table[:-1]
        object.__setattr__(self, "_pieces", (starts[broken].tolist(), offsets[broken].tolist(), is_table[broken].tolist()))

    @property
    def curve(self) -> Curve:
        return self.slope if self.header.order == "slope" else self.uniform

    @property
    def tokens(self) -> int:
        return self.header.cells.tokens

    @property
    def order(self) -> Order:
        return self.header.order

    @property
    def depth_bits(self) -> int:
        return self.header.cells.depth_bits

    @property
    def exact_cells(self) -> int:
        return len(self.header.exact)

    def buffers(self, start: int, stop: int) -> list[memoryview]:
        """Bytes [start, stop) of the wire, as pieces of memory in their order; nothing is copied. Raises ValueError outside the stream."""
        if not 0 <= start <= stop <= self.ends[-1]:
            raise ValueError(f"bytes {start} to {stop} are not all in a stream of {self.ends[-1]}")
        pieces = [self.head[start : min(stop, len(self.head))]] if start < min(stop, len(self.head)) else []
        begins, offsets, in_sums = self._pieces
        at = max(start, len(self.head))
        index = bisect_right(begins, at) - 1
        while at < stop:
            end = min(stop, begins[index + 1] if index + 1 < len(begins) else stop)
            first = offsets[index] + at - begins[index]
            pieces.append((self.sums if in_sums[index] else self.body)[first : first + end - at])
            at, index = end, index + 1
        return pieces

    def reordered(self, weights: torch.Tensor | None, order: Order = "slope") -> Stream:
        """The same passes in another order. Raises ValueError for weights that do not fit the cells."""
        return assemble(self.parts, order, weights)

    def prefix(self, cut: int) -> bytes:
        """The wire bytes of a cut, copied into one piece."""
        return b"".join(self.buffers(0, self.ends[cut]))


def slot_sums(cells: Cells, lengths: np.ndarray | None, coded: CodedCells, backend: Backend) -> np.ndarray:
    """The CRC-32 of each slot, as in Parts."""
    sizes = slot_sizes(cells, lengths)
    offsets = cells.offsets if lengths is None else (sizes.cumsum() - sizes.reshape(-1)).reshape(sizes.shape)
    there = (sizes > 0) & (coded.forms != EXACT)
    sums = np.zeros(sizes.shape, dtype=np.uint32)
    sums[there] = backend.checksums(coded.body.numpy(), offsets[there], sizes[there])
    return sums


def slot_sizes(cells: Cells, lengths: np.ndarray | None) -> np.ndarray:
    """Bytes of each slot, [passes + 1, cells]; the entropy form has no slot of metadata."""
    return cells.sizes if lengths is None else np.concatenate((np.zeros_like(lengths[:1]), lengths))


def assemble(parts: StreamParts, order: Order, weights: torch.Tensor | None) -> Stream:
    """A stream in `order`, its slopes weighted (order.py). Raises ValueError for weights that do not fit the cells."""
    cells, coded = parts.cells, parts.coded
    left = weighted_distortion(coded.errors, coded.deviation, None if weights is None else weights.cpu().numpy(), cells)
    exact = coded.forms == EXACT
    sizes = slot_sizes(cells, parts.lengths)
    bands: dict[Order, Bands] = {"slope": slope_bands(sizes, left), "uniform": uniform_bands(sizes, exact)}
    headers: dict[Order, StreamHeader] = {}
    curves: dict[Order, Curve] = {}
    for kind in ORDERS:
        distortion = distortions(bands[kind], left)
        crcs = zlib.crc32(parts.edges), zlib.crc32(parts.raw)
        headers[kind] = StreamHeader(cells, kind, bands[kind], distortion, coded.forms, *crcs, parts.coder, parts.lengths, parts.levels)
        curves[kind] = curve_of(bands[kind], cells, exact, headers[kind].ends, distortion)
    header = headers[order]
    head = memoryview(header.pack() + parts.edges + parts.raw)
    body = coded.body.numpy().data
    return Stream(header, curves["slope"], curves["uniform"], header.ends, head, _tables(header, parts.sums), body, parts)


def _tables(header: StreamHeader, sums: np.ndarray) -> memoryview:
    """The tables of checksums of all sections, each padded to 16 bytes."""
    at = header.sections
    listed = sums.reshape(-1)[at.order].astype("<u4")
    tables = (listed[at.of == section].tobytes().ljust(at.table_bytes(section), b"\0") for section in range(len(at.ends)))
    return memoryview(b"".join(tables))

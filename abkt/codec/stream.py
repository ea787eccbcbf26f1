"""A stream: coded cells in an order. Any prefix that ends at a cut may be kept. The same cells may be put in another order without being
coded again.

Weights decide the order, and they may come late or change. A layer that is sent while prefill still runs has equal weights; at the end of
prefill the last queries of the prompt tell which cells matter. A new order keeps all slots and their checksums; only the header and the
tables of checksums are made again. header.py describes the wire.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.coder import OMITTED, CodedSequence
from abkt.codec.divergence import DivergenceLaw
from abkt.codec.fixed.backend import Backend
from abkt.codec.header import ORDERS, StreamHeader, slot_offsets
from abkt.codec.order import Bands, curve_of, distortions, slope_bands, uniform_bands, weighted_distortion
from abkt.policy.view import CoderName, Curve, Order


@dataclass(frozen=True, slots=True)
class StreamParts:
    """The parts that are the same in every order of a stream. edges, verbatim: the bytes after the header (edges.py). sums: [passes + 1,
    cells] uint32, the CRC-32 of each slot, 0 where a cell is verbatim or omitted. law: what the stream states in place of its weighted
    squared error; None: that error itself, or the divergence that the klt coder gives."""

    cells: Cells
    coder: CoderName
    coded: CodedSequence
    edges: bytes
    verbatim: bytes
    sums: np.ndarray
    law: DivergenceLaw | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """One encoded sequence, as bytes that are sent in order and may be cut at any of `ends`.

    Parameters
    ----------
    header : what the stream says about itself.
    slope, uniform : bytes and distortion of each cut, in either order of the passes.
    ends : the byte where each cut ends, rising; cut 0 holds the metadata alone.
    head : header, edges and verbatim cells.
    sums : the tables of checksums of all sections, one after the other.
    body : uint8, all slots in storage order (cells.py).
    parts : what the stream shares with its other orders.
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
    """For each contiguous piece after the head: where it starts on the wire, where it starts in memory, and whether that memory is `sums`
    (else it is `body`)."""

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
    def verbatim_cells(self) -> int:
        return len(self.header.verbatim)

    def buffers(self, start: int, stop: int) -> list[memoryview]:
        """Bytes [start, stop) of the wire, as pieces of memory in wire order; nothing is copied. Raises ValueError outside the stream."""
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
        """The wire bytes up to the end of a cut, copied into one piece."""
        return b"".join(self.buffers(0, self.ends[cut]))


def slot_sums(coded: CodedSequence, backend: Backend) -> np.ndarray:
    """The CRC-32 of each slot, as in StreamParts."""
    there = (coded.sizes > 0) & (coded.cells.classes < OMITTED)
    sums = np.zeros(coded.sizes.shape, dtype=np.uint32)
    sums[there] = backend.checksums(coded.cells.body.numpy(), slot_offsets(coded.sizes)[there], coded.sizes[there])
    return sums


def assemble(parts: StreamParts, order: Order, weights: torch.Tensor | None) -> Stream:
    """A stream in `order`. weights: of the cells, for the slopes (order.py). Raises ValueError for weights that do not fit the cells."""
    cells, sizes, coded = parts.cells, parts.coded.sizes, parts.coded.cells
    if parts.coder == "klt":
        if weights is not None:
            raise ValueError("coder klt weighs cells by its calibration; give importance to Codec.encode, and no weights")
        left = coded.errors  # of the metric in which all cells matter alike
    else:
        left = weighted_distortion(
            coded.errors, coded.deviation, None if weights is None else weights.cpu().numpy(), cells, coded.classes != OMITTED
        )
    uncoded = coded.classes >= OMITTED
    bands: dict[Order, Bands] = {
        "slope": slope_bands(sizes, left, finer_first=parts.coder == "klt"),
        "uniform": uniform_bands(sizes, uncoded),
    }
    crcs = zlib.crc32(parts.edges), zlib.crc32(parts.verbatim)
    headers: dict[Order, StreamHeader] = {}
    curves: dict[Order, Curve] = {}
    for kind in ORDERS:
        distortion = distortions(bands[kind], left)
        if parts.law:
            distortion = tuple(map(parts.law.of, distortion))
        headers[kind] = StreamHeader(cells, kind, bands[kind], distortion, coded.classes, *crcs, parts.coder, sizes, parts.coded.levels)
        curves[kind] = curve_of(bands[kind], cells, uncoded, headers[kind].ends, distortion)
    header = headers[order]
    head = memoryview(header.pack() + parts.edges + parts.verbatim)
    return Stream(
        header, curves["slope"], curves["uniform"], header.ends, head, _tables(header, parts.sums), coded.body.numpy().data, parts
    )


def _tables(header: StreamHeader, sums: np.ndarray) -> memoryview:
    """The tables of checksums of all sections, each padded to 16 bytes."""
    at = header.sections
    listed = sums.reshape(-1)[at.order].astype("<u4")
    tables = (listed[at.of == section].tobytes().ljust(at.table_bytes(section), b"\0") for section in range(len(at.ends)))
    return memoryview(b"".join(tables))

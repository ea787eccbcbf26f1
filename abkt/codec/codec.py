"""The codec: KV of a sequence to an embedded stream, and any prefix of it that ends at a cut back to KV."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from abkt.codec import edges
from abkt.codec.calibration import Calibration
from abkt.codec.cells import BITS, Cells
from abkt.codec.entropy import coder as entropy_coder
from abkt.codec.fixed import compiled
from abkt.codec.fixed.backend import EXACT, Arrived, Backend, CodedCells
from abkt.codec.fixed.centre import value_centres
from abkt.codec.fixed.oracle import Oracle
from abkt.codec.header import CODERS, DTYPES, ORDERS, CoderName, StreamHeader, exact_token_bytes, read_header
from abkt.codec.stream import Stream, StreamParts, assemble, slot_sums
from abkt.kv.pool import Pool
from abkt.policy.view import Order
from abkt.spec import KVLayout

Name = Literal["auto", "oracle", "compiled", "triton"]


@dataclass(frozen=True, slots=True)
class Expanded:
    """What was written. distortion: what the encoder measured at this cut. exact_cells: cells that travelled as they were."""

    cut: int
    tokens: int
    distortion: float
    exact_cells: int


class Codec:
    """layout: of the pools on both sides (they may differ in their number of blocks). backend auto: Triton for a pool on a GPU, else
    compiled code where g++ and head_dim allow it, else the torch oracle. All give the same bytes. rope_theta: the base of the model's
    rotary embedding, which the entropy form uses to predict K; None costs bytes alone. calibration: says which heads the entropy form
    codes as differences; without one each sequence decides for itself."""

    def __init__(
        self,
        layout: KVLayout,
        backend: Name = "auto",
        tile_tokens: int = 128,
        rope_theta: float | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if layout.model.dtype not in DTYPES:
            raise ValueError(f"model {layout.model.name}: KV of {layout.model.dtype} cannot be coded; {', '.join(DTYPES)} can")
        self.layout = layout
        self.tile_tokens = tile_tokens
        self.backend = backend
        self.rope_theta = rope_theta
        self.calibration = calibration
        if calibration:
            calibration.check(layout)
        self._loaded: dict[str, Backend] = {}
        Cells(layout, 1, tile_tokens, 8)  # raises for a tile that is no whole number of blocks

    def describe(self, device: str | torch.device = "cpu") -> str:
        """The path that codes a pool on `device`, in words."""
        return self.backend_on(torch.device(device)).describe()

    def cells(self, tokens: int, depth_bits: int = 8) -> Cells:
        """How a sequence of so many tokens is cut up."""
        return Cells(self.layout, tokens, self.tile_tokens, depth_bits)

    def encode(
        self,
        pool: Pool,
        table: Sequence[int],
        tokens: int,
        depth_bits: int = 8,
        order: Order = "slope",
        weights: torch.Tensor | None = None,
        coder: CoderName = "fixed",
    ) -> Stream:
        """The first `tokens` tokens of a sequence as a stream that may be refined up to depth_bits bits (1, 2, 3, 4, 6 or 8).

        weights: how much the squared error of each cell matters, [layers, kinds, heads, tiles] (`Cells.shape`), of any scale;
            None is flat.
        coder: fixed packs bits, at the speed of memory; entropy takes fewer bytes for the same error, and far longer.
        Raises ValueError for a pool of another layout, a table that does not hold the tokens, an unknown depth, order or coder.
        """
        blocks = self._check(pool, table, tokens)
        if order not in ORDERS:
            raise ValueError(f"order {order} is unknown; one of {', '.join(ORDERS)} is possible")
        if coder not in CODERS:
            raise ValueError(f"coder {coder} is unknown; one of {', '.join(CODERS)} is possible")
        cells = self.cells(tokens, depth_bits)
        coded, lengths, levels, statistics = self._coded(pool, cells.coded_table(blocks), cells, coder)
        at_edges = edges.edges(pool, blocks, cells, statistics, levels)
        raw = edges.raw_cells(pool, blocks, cells, np.flatnonzero(coded.forms == EXACT))
        sums = slot_sums(cells, lengths, coded, self.backend_on(pool.data.device))
        return assemble(StreamParts(cells, coder, coded, lengths, levels, at_edges, raw, sums), order, weights)

    def expand(self, data: bytes | bytearray | memoryview, pool: Pool, table: Sequence[int]) -> Expanded:
        """Write what a prefix of a stream holds into the blocks `table`, which may lie anywhere in the pool.

        Raises ValueError, naming the section or cell, if the prefix does not end at a cut, is damaged, of another version or for
        another layout, or if the table does not hold it; the pool is untouched then.
        """
        view = memoryview(data).cast("B")
        header = read_header(view, self.layout)
        cells, ends = header.cells, header.ends
        blocks = self._check(pool, table, cells.tokens)
        cut = _cut_at(len(view), ends)
        backend = self.backend_on(pool.data.device)
        wire = np.frombuffer(view, dtype=np.uint8)
        _verify(header, cut, wire, backend)
        if cells.count:
            coded_blocks, offsets = cells.coded_table(blocks), header.sections.offsets(header.sizes.shape)
            present = (header.bands.of < cut).sum(0).astype(np.int8)
            if header.coder == "entropy":
                assert header.levels is not None
                statistics = bytes(wire[header.edges_at + exact_token_bytes(cells) : header.raw_at])
                of_slots = (wire, offsets, header.sizes, present, header.forms, header.levels, statistics)
                entropy_coder.expand(*of_slots, pool.data, coded_blocks, cells)
            else:
                arrived = Arrived(wire, offsets, present, header.forms, edges.centres_of(wire, header, pool.dtype))
                backend.expand(arrived, pool.data, coded_blocks, cells)
        edges.put_edges(wire, header, pool, blocks)
        edges.put_raw_cells(wire, header, pool, blocks)
        return Expanded(cut, cells.tokens, header.distortion[cut], len(header.exact))

    def _coded(
        self, pool: Pool, blocks: list[int], cells: Cells, coder: CoderName
    ) -> tuple[CodedCells, np.ndarray | None, np.ndarray | None, bytes]:
        """The cells, in the entropy form the bytes of their passes and the levels of their strips, and what the head says of all."""
        if coder == "entropy":
            levels = self.calibration.levels if self.calibration else None
            done = entropy_coder.encode(pool.data, blocks, cells, self.rope_theta, levels)
            return done.coded, done.lengths, done.levels, done.statistics
        centres = value_centres(pool.data, blocks, cells)
        coded = self.backend_on(pool.data.device).encode(pool.data, blocks, cells, centres)
        return coded, None, None, edges.gather([torch.tensor(centres).to(pool.dtype)])

    def _check(self, pool: Pool, table: Sequence[int], tokens: int) -> list[int]:
        if pool.layout.shape[1:] != self.layout.shape[1:] or pool.layout.model.dtype != self.layout.model.dtype:
            theirs, ours = pool.layout, self.layout
            raise ValueError(
                f"pool {theirs.shape} of {theirs.model.dtype} does not fit this codec's {ours.shape} of {ours.model.dtype}; "
                "only the number of blocks may differ"
            )
        return pool.check_table(table, tokens)

    def backend_on(self, device: torch.device) -> Backend:
        """The path that codes a pool on `device`."""
        if device.type not in self._loaded:
            self._loaded[device.type] = self._load(device)
        return self._loaded[device.type]

    def _load(self, device: torch.device) -> Backend:
        if self.backend == "triton" or (self.backend == "auto" and device.type == "cuda"):
            from abkt.codec.fixed.launch import Kernels

            return Kernels()
        if self.backend == "oracle":
            return Oracle()
        return compiled.for_layout(self.layout, required=self.backend == "compiled") or Oracle()


def _cut_at(size: int, ends: tuple[int, ...]) -> int:
    if size in ends:
        return ends.index(size)
    if size > ends[-1]:
        raise ValueError(f"stream of {ends[-1]} bytes is followed by {size - ends[-1]} that are not its own")
    cut = next(i for i, end in enumerate(ends) if end > size)
    where = f"band {cut - 1}" if cut else "its edges or metadata"
    raise ValueError(f"stream is cut inside {where}: {size} bytes, and the next cut is at {ends[cut]}")


def _verify(header: StreamHeader, cut: int, wire: np.ndarray, backend: Backend) -> None:
    view, at, cells = wire.data, header.sections, header.cells
    for name, start, end, expected in (
        ("exact edges and centres", header.edges_at, header.raw_at, header.edges_crc),
        ("exact cells", header.raw_at, header.head_bytes, header.raw_crc),
    ):
        if zlib.crc32(view[start:end]) != expected:
            raise ValueError(f"stream is damaged in its {name}: their checksum does not match")
    here = at.of <= cut
    order, of = at.order[here], at.of[here]
    tables = []
    for section, start in enumerate(at.tables[: cut + 1]):
        table, used = wire[int(start) :][: at.table_bytes(section)], 4 * int((of == section).sum())
        if table[used:].any():
            raise ValueError(f"stream is damaged behind the checksums of section {section}, where nothing but zeros may stand")
        tables.append(table[:used])
    expected_sums = np.concatenate(tables).view("<u4")
    wrong = np.flatnonzero(backend.checksums(wire, at.starts[here], header.sizes.reshape(-1)[order]) != expected_sums)
    if len(wrong):
        index, cell = divmod(int(order[wrong[0]]), cells.count)
        part = "metadata" if index == 0 else f"bits {8 - BITS[index - 1] - 1} to {8 - BITS[index]}"
        raise ValueError(f"stream is damaged in {cells.name(cell)}, {part}: the checksum does not match")

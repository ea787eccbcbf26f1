"""The codec: KV of a sequence to an embedded stream, and any prefix of it that ends at a cut back to KV."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from abkt.codec import entropy_form, fast
from abkt.codec.backend import EXACT, Arrived, Backend, Coded
from abkt.codec.cells import BITS, Cells, aligned
from abkt.codec.centre import value_centres
from abkt.codec.oracle import Oracle
from abkt.codec.order import Bands, curve_of, distortions, slope_bands, uniform_bands, weighted_distortion
from abkt.codec.stream import CODERS, DTYPES, ORDERS, Coder, Header, Stream, edge_bytes, exact_token_bytes, raw_cell_bytes, read_header
from abkt.kv.pool import Pool
from abkt.policy.view import Curve, Order
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
    rotary embedding, which the entropy form uses to predict K; None costs bytes alone."""

    def __init__(self, layout: KVLayout, backend: Name = "auto", tile_tokens: int = 128, rope_theta: float | None = None) -> None:
        if layout.model.dtype not in DTYPES:
            raise ValueError(f"model {layout.model.name}: KV of {layout.model.dtype} cannot be coded; {', '.join(DTYPES)} can")
        self.layout = layout
        self.tile_tokens = tile_tokens
        self.backend = backend
        self.rope_theta = rope_theta
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
        coder: Coder = "fixed",
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
        coded, lengths, statistics = self._coded(pool, cells.coded_table(blocks), cells, coder)
        left = weighted_distortion(coded.errors, coded.deviation, None if weights is None else weights.cpu().numpy(), cells)
        exact = coded.forms == EXACT
        sizes = cells.sizes if lengths is None else np.concatenate((np.zeros_like(lengths[:1]), lengths))
        bands: dict[Order, Bands] = {"slope": slope_bands(sizes, left), "uniform": uniform_bands(sizes, exact)}
        edges, raw = _edges(pool, blocks, cells, statistics, coder), _raw_cells(pool, blocks, cells, np.flatnonzero(exact))

        def header_of(kind: Order) -> tuple[Header, Curve]:
            distortion = distortions(bands[kind], left)
            header = Header(cells, kind, bands[kind], distortion, coded.forms, zlib.crc32(edges), zlib.crc32(raw), coder, lengths)
            return header, curve_of(bands[kind], cells, exact, header.ends, distortion)

        headers, curves = {}, {}
        for kind in ORDERS:
            headers[kind], curves[kind] = header_of(kind)
        header, body = headers[order], coded.body.numpy()
        head = memoryview(header.pack() + edges + raw)
        sums = _checksums(header, body, self.backend_on(pool.data.device))
        return Stream(header, curves["slope"], curves["uniform"], header.ends, head, sums, body.data)

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
                start = header.edges_at + exact_token_bytes(cells)
                entropy_form.expand(
                    wire, offsets, header.sizes, present, header.forms, bytes(wire[start : header.raw_at]), pool.data, coded_blocks, cells
                )
            else:
                arrived = Arrived(wire, offsets, present, header.forms, _centres(wire, header, pool.dtype))
                backend.expand(arrived, pool.data, coded_blocks, cells)
        _put_edges(wire, header, pool, blocks)
        _put_raw_cells(wire, header, pool, blocks)
        return Expanded(cut, cells.tokens, header.distortion[cut], len(header.exact))

    def _coded(self, pool: Pool, blocks: list[int], cells: Cells, coder: Coder) -> tuple[Coded, np.ndarray | None, bytes]:
        """The cells, the bytes of their passes if the coder decides them, and what the head says of all."""
        if coder == "entropy":
            done = entropy_form.encode(pool.data, blocks, cells, self.rope_theta)
            return done.coded, done.lengths, done.statistics
        centres = value_centres(pool.data, blocks, cells)
        coded = self.backend_on(pool.data.device).encode(pool.data, blocks, cells, centres)
        return coded, None, _gather([torch.tensor(centres).to(pool.dtype)])

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
            from abkt.codec.launch import Kernels

            return Kernels()
        if self.backend == "oracle":
            return Oracle()
        return fast.for_layout(self.layout, required=self.backend == "compiled") or Oracle()


def _cut_at(size: int, ends: tuple[int, ...]) -> int:
    if size in ends:
        return ends.index(size)
    if size > ends[-1]:
        raise ValueError(f"stream of {ends[-1]} bytes is followed by {size - ends[-1]} that are not its own")
    cut = next(i for i, end in enumerate(ends) if end > size)
    where = f"band {cut - 1}" if cut else "its edges or metadata"
    raise ValueError(f"stream is cut inside {where}: {size} bytes, and the next cut is at {ends[cut]}")


def _checksums(header: Header, body: np.ndarray, backend: Backend) -> memoryview:
    """The tables of checksums of all sections, each padded to 16 bytes."""
    at = header.sections
    found = backend.checksums(body, header.offsets.reshape(-1)[at.order], header.sizes.reshape(-1)[at.order]).astype("<u4")
    tables = (found[at.of == section].tobytes().ljust(at.table_bytes(section), b"\0") for section in range(len(at.ends)))
    return memoryview(b"".join(tables))


def _verify(header: Header, cut: int, wire: np.ndarray, backend: Backend) -> None:
    view, at, cells = wire.data, header.sections, header.cells
    for name, start, end, expected in (
        ("exact edges and centres", header.edges_at, header.raw_at, header.edges_crc),
        ("exact cells", header.raw_at, header.head_bytes, header.raw_crc),
    ):
        if zlib.crc32(view[start:end]) != expected:
            raise ValueError(f"stream is damaged in its {name}: their checksum does not match")
    here = at.of <= cut
    order, of = at.order[here], at.of[here]
    tables = [wire[int(start) :][: 4 * int((of == section).sum())] for section, start in enumerate(at.tables[: cut + 1])]
    expected_sums = np.concatenate(tables).view("<u4")
    wrong = np.flatnonzero(backend.checksums(wire, at.starts[here], header.sizes.reshape(-1)[order]) != expected_sums)
    if len(wrong):
        index, cell = divmod(int(order[wrong[0]]), cells.count)
        part = "metadata" if index == 0 else f"bits {8 - BITS[index - 1] - 1} to {8 - BITS[index]}"
        raise ValueError(f"stream is damaged in {cells.name(cell)}, {part}: the checksum does not match")


def _edge_views(pool: Pool, blocks: list[int], cells: Cells) -> list[torch.Tensor]:
    last = cells.layout.blocks_for(cells.tokens) - 1
    views = [pool.data[blocks[0], ..., : cells.sink_tokens, :]]
    return [*views, pool.data[blocks[last], ..., : cells.newest_tokens, :]] if last else views


def _raw_views(pool: Pool, blocks: list[int], cells: Cells, exact: np.ndarray) -> list[torch.Tensor]:
    coded = cells.coded_table(blocks)
    parts = pool.data.shape[-1] // cells.dim
    views = []
    for layer, kind, head, tile in (cells.place(int(cell)) for cell in exact):
        columns = slice(head % parts * cells.dim, (head % parts + 1) * cells.dim)
        views += [pool.data[block, layer, kind, head // parts, :, columns] for block in coded[cells.tile_blocks(tile)]]
    return views


def _gather(views: list[torch.Tensor]) -> bytes:
    parts = [v.cpu().contiguous().reshape(-1).view(torch.uint8) for v in views if v.numel()]  # an empty view may have strides of 0
    return torch.cat(parts).numpy().tobytes() if parts else b""


def _padded(data: bytes, size: int) -> bytes:
    assert size - 16 < len(data) <= size
    return data.ljust(size, b"\0")


def _scatter(wire: np.ndarray, start: int, views: list[torch.Tensor]) -> None:
    for view in views:
        part = torch.empty(view.shape, dtype=view.dtype)
        size = part.numel() * part.element_size()
        part.view(torch.uint8).numpy().reshape(-1)[:] = wire[start : start + size]
        view.copy_(part)
        start += size


def _edges(pool: Pool, blocks: list[int], cells: Cells, statistics: bytes, coder: Coder) -> bytes:
    return _padded(_gather(_edge_views(pool, blocks, cells)) + (statistics if cells.count else b""), edge_bytes(cells, coder))


def _centres(wire: np.ndarray, header: Header, dtype: torch.dtype) -> np.ndarray:
    layers, kinds, heads, _ = header.cells.shape
    centres = torch.empty(layers if kinds > 1 else 0, heads, header.cells.dim, dtype=dtype)
    _scatter(wire, header.edges_at + exact_token_bytes(header.cells), [centres])
    return centres.float().numpy()


def _raw_cells(pool: Pool, blocks: list[int], cells: Cells, exact: np.ndarray) -> bytes:
    return _padded(_gather(_raw_views(pool, blocks, cells, exact)), aligned(raw_cell_bytes(cells, exact)))


def _put_edges(wire: np.ndarray, header: Header, pool: Pool, blocks: list[int]) -> None:
    _scatter(wire, header.edges_at, _edge_views(pool, blocks, header.cells))


def _put_raw_cells(wire: np.ndarray, header: Header, pool: Pool, blocks: list[int]) -> None:
    _scatter(wire, header.raw_at, _raw_views(pool, blocks, header.cells, header.exact))

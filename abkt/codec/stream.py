"""The container: a self-describing stream that can be cut after any band.

    header     fixed fields | distortion of each cut, float32 | exact cells, uint32 | band of each pass of each cell, uint8
               | CRC-32 of each slot, metadata included, uint32 | CRC-32 of the header
    edges      the first block, then the newest tokens: [layer, K|V, kv_head, token, head_dim] each, in the pool's dtype;
               then, if there are cells, the centres of V's channels, [layer, kv_head, head_dim], in the pool's dtype
    raw        cells that travel exact, [token, head_dim] each
    metadata   the metadata slot of every cell
    bands      the slots of band 0, 1, ...: within a band pass by pass, cell by cell

All sections are whole multiples of 16 bytes, so slots stay aligned on the wire; padding is 0 and covered by checksums. Cut 0 ends after
the metadata, cut i after band i - 1. Little-endian throughout.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from abkt.codec.cells import Cells, aligned
from abkt.codec.order import MAX_BANDS, NEVER, Bands
from abkt.policy.view import Curve, Order
from abkt.spec import DTYPE_BYTES, KVLayout

MAGIC = b"ABKT"
VERSION = 1
ORDERS: tuple[Order, ...] = ("uniform", "slope")
DTYPES = ("bfloat16", "float16", "float32")  # by their number on the wire
# magic, version, depth, order | header bytes, tokens, tile tokens | layers, heads, dim, block tokens | dtype, bands | exact cells, two CRCs
FIXED = struct.Struct("<4sHBBIIIHHHHBB2xIII")


@dataclass(frozen=True, slots=True)
class Header:
    """What a stream says of itself. exact: [n] uint32 cells, rising. checksums: [passes + 1, cells] uint32."""

    cells: Cells
    order: Order
    bands: Bands
    distortion: tuple[float, ...]
    exact: np.ndarray
    checksums: np.ndarray
    edges_crc: int
    raw_crc: int

    @property
    def header_bytes(self) -> int:
        return header_bytes(self.cells, self.bands.count, len(self.exact))

    @property
    def edges_at(self) -> int:
        return self.header_bytes

    @property
    def raw_at(self) -> int:
        return self.edges_at + edge_bytes(self.cells)

    @property
    def metadata_at(self) -> int:
        return self.raw_at + aligned(raw_cell_bytes(self.cells, self.exact))

    def slots(self) -> tuple[np.ndarray, np.ndarray]:
        """The slots that are sent after the metadata, in wire order: their index in [passes, cells] flattened, and their band."""
        flat = self.bands.of.reshape(-1)
        order = np.argsort(flat, kind="stable")[: int((flat != NEVER).sum())]
        return order, flat[order]

    @property
    def ends(self) -> tuple[int, ...]:
        """The byte where each cut ends."""
        sent = self.bands.of != NEVER
        sizes = np.zeros(self.bands.count + 1, dtype=np.int64)
        np.add.at(sizes, self.bands.of[sent].astype(np.int64) + 1, self.cells.sizes[1:][sent])
        sizes[0] = self.metadata_at + self.cells.sizes[0].sum()
        return tuple(sizes.cumsum().tolist())

    def pack(self) -> bytes:
        cells, model = self.cells, self.cells.layout.model
        fixed = FIXED.pack(
            MAGIC, VERSION, cells.depth_bits, ORDERS.index(self.order), self.header_bytes, cells.tokens, cells.tile_tokens, model.layers,
            model.kv_heads, model.head_dim, cells.layout.block_tokens, DTYPES.index(model.dtype), self.bands.count, len(self.exact),
            self.edges_crc, self.raw_crc,
        )  # fmt: skip
        parts = (
            fixed,
            np.array(self.distortion, dtype="<f4").tobytes(),
            self.exact.astype("<u4").tobytes(),
            self.bands.of.tobytes(),
            self.checksums.astype("<u4").tobytes(),
        )
        body = b"".join(parts).ljust(self.header_bytes - 4, b"\0")
        return body + struct.pack("<I", zlib.crc32(body))


def header_bytes(cells: Cells, bands: int, exact: int) -> int:
    table = cells.count * cells.passes + 4 * cells.count * (cells.passes + 1)
    return aligned(FIXED.size + 4 * (bands + 1) + 4 * exact + table + 4)


def exact_token_bytes(cells: Cells) -> int:
    return (cells.sink_tokens + cells.newest_tokens) * cells.layout.model.kv_bytes_per_token


def edge_bytes(cells: Cells) -> int:
    centres = cells.layout.model.kv_bytes_per_token // 2 if cells.count else 0  # one vector the size of a token's V
    return aligned(exact_token_bytes(cells) + centres)


def raw_cell_bytes(cells: Cells, exact: np.ndarray) -> int:
    return int(cells.values[exact].sum()) * DTYPE_BYTES[cells.layout.model.dtype]


def first_bytes(cells: Cells, bands: int, exact: np.ndarray) -> int:
    """Where cut 0 ends."""
    fixed = header_bytes(cells, bands, len(exact)) + edge_bytes(cells) + aligned(raw_cell_bytes(cells, exact))
    return fixed + int(cells.sizes[0].sum())


def read_header(data: memoryview, layout: KVLayout) -> Header:
    """The header of a stream, from at least its first bytes. Raises ValueError, saying what is wrong, unless it is whole, undamaged, of
    this version and for this layout (whatever the number of blocks)."""
    if len(data) < FIXED.size:
        raise ValueError(f"stream of {len(data)} bytes is cut inside its header; the fixed fields alone are {FIXED.size}")
    (magic, version, depth, order, size, tokens, tile, layers, heads, dim, block_tokens, dtype, bands, exact_cells, edges_crc, raw_crc) = (
        FIXED.unpack_from(data)
    )
    if magic != MAGIC:
        raise ValueError(f"not a KV stream: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise ValueError(f"stream of version {version}; this codec reads version {VERSION}")
    if not FIXED.size < size <= len(data):
        raise ValueError(f"stream is cut inside its header: {len(data)} bytes of {size}")
    if zlib.crc32(data[: size - 4]) != struct.unpack_from("<I", data, size - 4)[0]:
        raise ValueError("stream header is damaged: its checksum does not match")
    model = layout.model
    theirs = (layers, 2, heads, block_tokens, dim)
    if theirs != layout.shape[1:] or dtype >= len(DTYPES) or DTYPES[dtype] != model.dtype:
        kind = DTYPES[dtype] if dtype < len(DTYPES) else "an unknown dtype"
        raise ValueError(f"stream holds blocks {theirs} of {kind}; the pool has blocks {layout.shape[1:]} of {model.dtype}")
    if layout.blocks_for(tokens) > layout.blocks:
        raise ValueError(f"stream holds {tokens} tokens; the pool has room for {layout.blocks * layout.block_tokens}")
    if order >= len(ORDERS) or bands > MAX_BANDS:
        raise ValueError(f"stream header is not valid: order {order}, {bands} bands")
    cells = Cells(layout, tokens, tile, depth)
    if header_bytes(cells, bands, exact_cells) != size:
        raise ValueError(f"stream header is {size} bytes; its fields need {header_bytes(cells, bands, exact_cells)}")
    at = FIXED.size

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal at
        array = np.frombuffer(data, dtype=dtype, count=int(np.prod(shape, dtype=np.int64)), offset=at).reshape(shape)
        at += array.nbytes
        return array

    distortion = tuple(take("<f4", bands + 1).tolist())
    exact = take("<u4", exact_cells)
    of = take("u1", cells.passes, cells.count)
    checksums = take("<u4", cells.passes + 1, cells.count)
    rising = (np.diff(of.astype(np.int16), axis=0) >= 0).all() and ((of < bands) | (of == NEVER)).all()
    listed = (np.diff(exact.astype(np.int64)) > 0).all() and (exact < cells.count).all()
    if not rising or not listed or (of[:, exact] != NEVER).any():
        raise ValueError("stream header is not valid: a cell comes twice, or its passes are out of order")
    return Header(cells, ORDERS[order], Bands(of, bands), distortion, exact, checksums, edges_crc, raw_crc)


@dataclass(frozen=True, slots=True)
class Stream:
    """One encoded sequence. curve: of its own order; slope and uniform: of both. ends: the byte where cut i ends, curve.bytes as integers.

    head: header, edges and exact cells. body: uint8, every slot of every pass, in storage order (cells.py).
    """

    header: Header
    slope: Curve
    uniform: Curve
    ends: tuple[int, ...]
    head: memoryview
    body: memoryview
    _pieces: tuple[list[int], list[int]] = field(init=False, repr=False)  # where each piece starts on the wire, and in the body

    def __post_init__(self) -> None:
        cells = self.header.cells
        order, _ = self.header.slots()
        meta = int(cells.sizes[0].sum())
        offsets = np.concatenate(([0], cells.offsets[1:].reshape(-1)[order]))
        sizes = np.concatenate(([meta], cells.sizes[1:].reshape(-1)[order]))
        starts = len(self.head) + sizes.cumsum() - sizes
        broken = np.concatenate(([True], offsets[1:] != offsets[:-1] + sizes[:-1]))
        object.__setattr__(self, "_pieces", (starts[broken].tolist(), offsets[broken].tolist()))

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
        begins, offsets = self._pieces
        at = max(start, len(self.head))
        index = bisect_right(begins, at) - 1
        while at < stop:
            end = min(stop, begins[index + 1] if index + 1 < len(begins) else stop)
            first = offsets[index] + at - begins[index]
            if end > at:
                pieces.append(self.body[first : first + end - at])
            at, index = max(at, end), index + 1
        return pieces

    def prefix(self, cut: int) -> bytes:
        """The wire bytes of a cut, copied into one piece."""
        return b"".join(self.buffers(0, self.ends[cut]))

"""The container: a self-describing stream that can be cut after any band.

    header     fixed fields | distortion of each cut, float32 | form of each cell, uint8 | band of each pass of each cell, uint8
               | in the entropy form, bytes of each pass of each cell, uint16, or uint32 for cells above 64 KiB, and the levels of
               differences of each strip, uint8 | CRC-32 of the header
    edges      the first block, then the newest tokens: [layer, kind, kv_head, token, head_dim] each, in the pool's dtype;
               then, if there are cells, the centres of V's channels, [layer, kv_head, head_dim], in the pool's dtype,
               or the statistics of the entropy form (entropy_form.py)
    raw        cells that travel exact, [token, channel] each
    metadata   the checksums of the metadata slots, then the slots (sections.py)
    bands      of band 0, 1, ...: the checksums of its slots, then the slots

With the fixed coder all sections are whole multiples of 16 bytes, so slots stay aligned; padding is 0 and covered by checksums. Cut 0
ends after the metadata, cut i after band i - 1, and what is not sent costs nothing but its byte in the table of bands. Little-endian
throughout.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from abkt.codec.cells import PASSES, Cells, aligned
from abkt.codec.entropy.coder import most_levels, statistic_bytes
from abkt.codec.entropy.oracle import room_of
from abkt.codec.fixed.backend import EXACT
from abkt.codec.fixed.quantize import CLASSES
from abkt.codec.order import MAX_BANDS, NEVER, Bands
from abkt.codec.sections import Sections, sections
from abkt.policy.view import Order
from abkt.spec import DTYPE_BYTES, KVLayout

MAGIC = b"ABKT"
VERSION = 4
ORDERS: tuple[Order, ...] = ("uniform", "slope")
CoderName = Literal["fixed", "entropy"]
CODERS: tuple[CoderName, ...] = ("fixed", "entropy")
DTYPES = ("bfloat16", "float16", "float32")  # by their number on the wire
# magic, version, depth, order, coder | header bytes, tokens, tile tokens | layers, kinds, heads, dim, block tokens | dtype, bands | CRCs
FIXED = struct.Struct("<4sHBBBxIIIHHHHHBBII")


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """What a stream says of itself. forms: [cells] uint8, the class of each cell's variance (0 in the entropy form), or EXACT. lengths:
    [passes, cells] int64, bytes of each pass, and levels: [strips] uint8, of differences, in the entropy form. sizes, offsets:
    [passes + 1, cells], of each slot in the body."""

    cells: Cells
    order: Order
    bands: Bands
    distortion: tuple[float, ...]
    forms: np.ndarray
    edges_crc: int
    raw_crc: int
    coder: CoderName = "fixed"
    lengths: np.ndarray | None = None
    levels: np.ndarray | None = None
    sizes: np.ndarray = field(init=False, repr=False)
    offsets: np.ndarray = field(init=False, repr=False)
    sections: Sections = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes, offsets = self.cells.sizes, self.cells.offsets
        if self.lengths is not None:
            sizes = np.concatenate((np.zeros_like(self.lengths[:1]), self.lengths))
            offsets = (sizes.cumsum() - sizes.reshape(-1)).reshape(sizes.shape)
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "sections", sections(sizes, self.bands, self.forms, self.head_bytes))

    @property
    def header_bytes(self) -> int:
        return header_bytes(self.cells, self.bands.count, self.coder)

    @property
    def edges_at(self) -> int:
        return self.header_bytes

    @property
    def raw_at(self) -> int:
        return self.edges_at + edge_bytes(self.cells, self.levels)

    @property
    def head_bytes(self) -> int:
        """Header, edges and exact cells."""
        return self.raw_at + aligned(raw_cell_bytes(self.cells, self.exact))

    @property
    def exact(self) -> np.ndarray:
        """Cells that travel as they are, rising."""
        return np.flatnonzero(self.forms == EXACT)

    @property
    def ends(self) -> tuple[int, ...]:
        """The byte where each cut ends."""
        return self.sections.ends

    def pack(self) -> bytes:
        cells, model = self.cells, self.cells.layout.model
        fixed = FIXED.pack(
            MAGIC, VERSION, cells.depth_bits, ORDERS.index(self.order), CODERS.index(self.coder), self.header_bytes, cells.tokens,
            cells.tile_tokens, model.layers, cells.shape[1], model.kv_heads, model.head_dim, cells.layout.block_tokens,
            DTYPES.index(model.dtype), self.bands.count, self.edges_crc, self.raw_crc,
        )  # fmt: skip
        parts = [fixed, np.array(self.distortion, dtype="<f4").tobytes(), self.forms.tobytes(), self.bands.of.tobytes()]
        if self.lengths is not None:
            parts.append(self.lengths.astype(_length_dtype(cells)).tobytes())
        if self.levels is not None:
            parts.append(self.levels.tobytes())
        body = b"".join(parts).ljust(self.header_bytes - 4, b"\0")
        return body + struct.pack("<I", zlib.crc32(body))


def header_bytes(cells: Cells, bands: int, coder: CoderName) -> int:
    entropy = cells.count * cells.passes * np.dtype(_length_dtype(cells)).itemsize + _strips(cells) if coder == "entropy" else 0
    return aligned(FIXED.size + 4 * (bands + 1) + cells.count * (cells.passes + 1) + entropy + 4)


def _strips(cells: Cells) -> int:
    return int(np.prod(cells.shape[:3]))


def _length_dtype(cells: Cells) -> str:
    return "<u2" if room_of(cells.tile_tokens, cells.dim) <= 65_535 else "<u4"


def exact_token_bytes(cells: Cells) -> int:
    return (cells.sink_tokens + cells.newest_tokens) * cells.layout.model.kv_bytes_per_token


def edge_bytes(cells: Cells, levels: np.ndarray | None) -> int:
    """levels: as in Header, so None where the coder is fixed."""
    model = cells.layout.model
    has_centres = cells.count and cells.shape[1] > 1
    statistics = model.kv_bytes_per_token // 2 if has_centres else 0  # one vector the size of a token's V
    if levels is not None:
        statistics = statistic_bytes(cells, DTYPE_BYTES[model.dtype], levels)
    return aligned(exact_token_bytes(cells) + statistics)


def raw_cell_bytes(cells: Cells, exact: np.ndarray) -> int:
    return int(cells.values[exact].sum()) * DTYPE_BYTES[cells.layout.model.dtype]


def read_header(data: memoryview, layout: KVLayout) -> StreamHeader:
    """The header of a stream, from at least its first bytes. Raises ValueError, saying what is wrong, unless it is whole, undamaged, of
    this version and for this layout (whatever the number of blocks)."""
    if len(data) < FIXED.size:
        raise ValueError(f"stream of {len(data)} bytes is cut inside its header; the fixed fields alone are {FIXED.size}")
    fields = FIXED.unpack_from(data)
    magic, version, depth, order, coder, size, tokens, tile, layers, kinds, heads, dim, block_tokens, dtype, bands, edges_crc, raw_crc = (
        fields
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
    theirs = (layers, kinds, heads, block_tokens, dim)
    if theirs != layout.shape[1:] or dtype >= len(DTYPES) or DTYPES[dtype] != model.dtype:
        kind = DTYPES[dtype] if dtype < len(DTYPES) else "an unknown dtype"
        raise ValueError(f"stream holds blocks {theirs} of {kind}; the pool has blocks {layout.shape[1:]} of {model.dtype}")
    if layout.blocks_for(tokens) > layout.blocks:
        raise ValueError(f"stream holds {tokens} tokens; the pool has room for {layout.blocks * layout.block_tokens}")
    if order >= len(ORDERS) or coder >= len(CODERS) or bands > MAX_BANDS or depth not in PASSES:
        raise ValueError(f"stream header is not valid: order {order}, coder {coder}, {bands} bands, depth of {depth} bits")
    cells = Cells(layout, tokens, tile, depth)
    if header_bytes(cells, bands, CODERS[coder]) != size:
        raise ValueError(f"stream header is {size} bytes; its fields need {header_bytes(cells, bands, CODERS[coder])}")
    at = FIXED.size

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal at
        array = np.frombuffer(data, dtype=dtype, count=int(np.prod(shape, dtype=np.int64)), offset=at).reshape(shape)
        at += array.nbytes
        return array

    distortion = tuple(take("<f4", bands + 1).tolist())
    forms = take("u1", cells.count)
    of = take("u1", cells.passes, cells.count)
    rising = (np.diff(of.astype(np.int16), axis=0) >= 0).all() and ((of < bands) | (of == NEVER)).all()
    if not rising or not ((forms < CLASSES) | (forms == EXACT)).all() or (of[:, forms == EXACT] != NEVER).any():
        raise ValueError("stream header is not valid: a cell comes twice, is of an unknown form, or its passes are out of order")
    lengths = take(_length_dtype(cells), cells.passes, cells.count).astype(np.int64) if CODERS[coder] == "entropy" else None
    if lengths is not None and (lengths[:, forms == EXACT].any() or (lengths > room_of(tile, cells.dim)).any()):
        raise ValueError("stream header is not valid: a pass is longer than a cell's could be")
    levels = take("u1", _strips(cells)) if CODERS[coder] == "entropy" else None
    if levels is not None and levels.size and levels.max() > most_levels(cells):
        raise ValueError(f"stream header is not valid: {levels.max()} levels of differences; these tiles have {most_levels(cells)} at most")
    return StreamHeader(cells, ORDERS[order], Bands(of, bands), distortion, forms, edges_crc, raw_crc, CODERS[coder], lengths, levels)

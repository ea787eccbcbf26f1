"""The format of a stream: it describes itself, and may be cut after any band.

    header     fixed fields | distortion of each cut, float32 | class of each cell, uint8 | band of each pass of each cell, uint8
               | the coder's tables (nothing with the fixed coder) | CRC-32 of the header
    edges      KV that travels verbatim (nothing with the klt coder): the first block, then the newest tokens, [layer, kind, kv_head,
               token, head_dim] each, in the pool's dtype; then, if there are cells, the coder's statistics of all of them
    verbatim   cells that could not be coded, [token, channel] each, in the pool's dtype; a cell whose class is OMITTED has no bytes here,
               nor below: it lies before the window of its layer, and no later token sees it
    metadata   the checksums of the metadata slots, then the slots (sections.py)
    bands      for band 0, 1, ...: the checksums of its slots, then the slots

Header, edges and verbatim cells are the *head* of the stream. With the fixed coder every part is a whole multiple of 16 bytes, so slots
stay aligned; padding is 0 and covered by checksums. Cut 0 ends after the metadata, cut i after band i - 1. A pass that is not sent costs
only its byte in the table of bands. Little-endian throughout.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

from abkt.codec.cells import PASSES, Cells, aligned
from abkt.codec.coder import CODERS, OMITTED, VERBATIM, Coder
from abkt.codec.entropy.coder import EntropyCoder
from abkt.codec.fixed.coder import FixedCoder
from abkt.codec.fixed.quantize import CLASSES
from abkt.codec.klt.coder import KltCoder
from abkt.codec.order import MAX_BANDS, NEVER, Bands
from abkt.codec.sections import Sections, sections
from abkt.policy.view import CoderName, Order
from abkt.spec import DTYPE_BYTES, KVLayout

MAGIC = b"ABKT"
VERSION = 4
ORDERS: tuple[Order, ...] = ("uniform", "slope")
DTYPES = ("bfloat16", "float16", "float32")  # by their number on the wire
# magic, version, depth, order, coder | header bytes, tokens, tile tokens | layers, kinds, heads, dim, block tokens | dtype, bands | CRCs
FIXED = struct.Struct("<4sHBBBxIIIHHHHHBBII")
TABLES: dict[CoderName, type[Coder]] = {"fixed": FixedCoder, "entropy": EntropyCoder, "klt": KltCoder}
"""Each coder defines its own tables in the header."""


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """What a stream says about itself.

    distortion: the distortion at each cut. classes: [cells] uint8, as in CodedCells. sizes: [passes + 1, cells] int64, bytes of each slot.
    levels: [strips] uint8, as in CodedSequence. offsets: like sizes, the place of each slot in the body.
    """

    cells: Cells
    order: Order
    bands: Bands
    distortion: tuple[float, ...]
    classes: np.ndarray
    edges_crc: int
    verbatim_crc: int
    coder: CoderName
    sizes: np.ndarray = field(repr=False)
    levels: np.ndarray
    offsets: np.ndarray = field(init=False, repr=False)
    sections: Sections = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", slot_offsets(self.sizes))
        object.__setattr__(self, "sections", sections(self.sizes, self.bands, self.classes, self.head_bytes))

    @property
    def header_bytes(self) -> int:
        return header_bytes(self.cells, self.bands.count, self.coder)

    @property
    def edges_at(self) -> int:
        return self.header_bytes

    @property
    def statistics_at(self) -> int:
        """Where the coder's statistics begin; they end, with padding, at verbatim_at."""
        return self.edges_at + verbatim_token_bytes(self.cells)

    @property
    def verbatim_at(self) -> int:
        """Where the verbatim cells begin."""
        statistics = TABLES[self.coder].statistics_bytes(self.cells, self.levels)
        return self.edges_at + aligned(verbatim_token_bytes(self.cells) + statistics)

    @property
    def head_bytes(self) -> int:
        """Header, edges and verbatim cells."""
        return self.verbatim_at + aligned(verbatim_cell_bytes(self.cells, self.verbatim))

    @property
    def verbatim(self) -> np.ndarray:
        """The numbers of the verbatim cells, in rising order."""
        return np.flatnonzero(self.classes == VERBATIM)

    @property
    def ends(self) -> tuple[int, ...]:
        """The byte where each cut ends."""
        return self.sections.ends

    def pack(self) -> bytes:
        cells, model = self.cells, self.cells.layout.model
        fixed = FIXED.pack(
            MAGIC, VERSION, cells.depth_bits, ORDERS.index(self.order), CODERS.index(self.coder), self.header_bytes, cells.tokens,
            cells.tile_tokens, model.layers, cells.shape[1], model.kv_heads, model.head_dim, cells.layout.block_tokens,
            DTYPES.index(model.dtype), self.bands.count, self.edges_crc, self.verbatim_crc,
        )  # fmt: skip
        tables = TABLES[self.coder].pack_tables(cells, self.sizes, self.levels)
        parts = (fixed, np.array(self.distortion, dtype="<f4").tobytes(), self.classes.tobytes(), self.bands.of.tobytes(), tables)
        body = b"".join(parts).ljust(self.header_bytes - 4, b"\0")
        return body + struct.pack("<I", zlib.crc32(body))


def slot_offsets(sizes: np.ndarray) -> np.ndarray:
    """Where each slot lies in a body that holds all of them, pass after pass: like sizes, [passes + 1, cells] int64."""
    return (sizes.cumsum() - sizes.reshape(-1)).reshape(sizes.shape)


def header_bytes(cells: Cells, bands: int, coder: CoderName) -> int:
    return aligned(FIXED.size + 4 * (bands + 1) + cells.count * (cells.passes + 1) + TABLES[coder].tables_bytes(cells) + 4)


def verbatim_token_bytes(cells: Cells) -> int:
    """Bytes of the tokens that travel verbatim, at both edges of the sequence."""
    return (cells.sink_tokens + cells.newest_tokens) * cells.layout.model.kv_bytes_per_token


def verbatim_cell_bytes(cells: Cells, verbatim: np.ndarray) -> int:
    """Bytes of the cells whose numbers are `verbatim`."""
    return int(cells.values[verbatim].sum()) * DTYPE_BYTES[cells.layout.model.dtype]


def read_header(data: memoryview, layout: KVLayout) -> StreamHeader:
    """The header of a stream. `data` must hold at least the bytes of the header.

    Raises ValueError, with the reason, unless the header is complete, undamaged, of this version and for this layout (with any number of
    blocks).
    """
    if len(data) < FIXED.size:
        raise ValueError(f"stream of {len(data)} bytes is cut inside its header; the fixed fields alone are {FIXED.size}")
    magic, version, depth, order, coder, size, tokens, tile, *shape, dtype, bands, edges_crc, verbatim_crc = FIXED.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"not a KV stream: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise ValueError(f"stream of version {version}; this codec reads version {VERSION}")
    if not FIXED.size < size <= len(data):
        raise ValueError(f"stream is cut inside its header: {len(data)} bytes of {size}")
    if zlib.crc32(data[: size - 4]) != struct.unpack_from("<I", data, size - 4)[0]:
        raise ValueError("stream header is damaged: its checksum does not match")
    layers, kinds, heads, dim, block_tokens = shape
    theirs, model = (layers, kinds, heads, block_tokens, dim), layout.model
    if theirs != layout.shape[1:] or dtype >= len(DTYPES) or DTYPES[dtype] != model.dtype:
        kind = DTYPES[dtype] if dtype < len(DTYPES) else "an unknown dtype"
        raise ValueError(f"stream holds blocks {theirs} of {kind}; the pool has blocks {layout.shape[1:]} of {model.dtype}")
    if layout.blocks_for(tokens) > layout.blocks:
        raise ValueError(f"stream holds {tokens} tokens; the pool has room for {layout.blocks * layout.block_tokens}")
    if order >= len(ORDERS) or coder >= len(CODERS) or bands > MAX_BANDS or depth not in PASSES:
        raise ValueError(f"stream header is not valid: order {order}, coder {coder}, {bands} bands, depth of {depth} bits")
    name = CODERS[coder]
    cells = Cells(layout, tokens, tile, depth, edges=name != "klt")
    if header_bytes(cells, bands, name) != size:
        raise ValueError(f"stream header is {size} bytes; its fields need {header_bytes(cells, bands, name)}")
    at = FIXED.size

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal at
        array = np.frombuffer(data, dtype=dtype, count=int(np.prod(shape, dtype=np.int64)), offset=at).reshape(shape)
        at += array.nbytes
        return array

    distortion = tuple(take("<f4", bands + 1).tolist())
    classes = take("u1", cells.count)
    of = take("u1", cells.passes, cells.count)
    uncoded = classes >= OMITTED
    rising = (np.diff(of.astype(np.int16), axis=0) >= 0).all() and ((of < bands) | (of == NEVER)).all()
    if not rising or not ((classes < CLASSES) | uncoded).all() or (of[:, uncoded] != NEVER).any():
        raise ValueError("stream header is not valid: a cell is listed twice, its class is unknown, or its passes are out of order")
    sizes, levels = TABLES[name].read_tables(data[at:size], cells, uncoded)
    return StreamHeader(cells, ORDERS[order], Bands(of, bands), distortion, classes, edges_crc, verbatim_crc, name, sizes, levels)

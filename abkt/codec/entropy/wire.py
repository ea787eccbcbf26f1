"""The entropy coder's bytes other than rANS streams: the head of pass 1, passes that are packed as plain bits, and the statistics of a
stream.

The statistics are the centres [strips, dim] in the pool's dtype, one bit per strip that says whether its centre rotates, the base of RoPE's
frequencies as a float64 (0 where none is known), and the scales, one byte each, strip after strip: [levels + 1, dim]. Strips are numbered
as [layers, kinds, heads]; their levels of differences stand in the header of the stream. Little-endian.
"""

from __future__ import annotations

import struct

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.entropy.stats import rotation_of

OUTLIER_BIT = 32  # of the metadata: outliers follow


def head_of(meta: int, outlier: np.ndarray, x: np.ndarray, dtype: torch.dtype) -> bytes:
    """The head of pass 1 of a cell: metadata and outliers. outlier: bool, in the shape of x. dtype: dtype of the outliers on the wire."""
    places = np.flatnonzero(outlier)
    if not len(places):
        return bytes([meta])
    values = torch.from_numpy(x.reshape(-1)[places].copy()).to(dtype).view(torch.uint8).numpy().tobytes()
    return b"".join((bytes([meta | OUTLIER_BIT]), struct.pack("<H", len(places)), places.astype(_place_dtype(x.size)).tobytes(), values))


def read_head(slot: bytes, cell: int, size: int, dtype: torch.dtype) -> tuple[int, tuple[np.ndarray, np.ndarray], bytes]:
    """The inverse of `head_of`: metadata, outliers (their places among the cell's `size` values, and their values), and the rest of pass
    1. Raises ValueError for damage."""
    none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    if not slot or slot[0] >= 2 * OUTLIER_BIT:
        raise ValueError(f"cell {cell}: pass 1 does not begin with a gain and a shape; its bytes are damaged")
    if slot[0] < OUTLIER_BIT:
        return slot[0], none, slot[1:]
    count = int.from_bytes(slot[1:3], "little")
    place = np.dtype(_place_dtype(size))
    end = 3 + count * (place.itemsize + dtype.itemsize)
    if len(slot) < end:
        raise ValueError(f"cell {cell}: pass 1 of {len(slot)} bytes does not hold its {count} outliers; its bytes are damaged")
    places = np.frombuffer(slot, place, count, 3).astype(np.int64)
    if not count or places.max() >= size:
        raise ValueError(f"cell {cell}: an outlier is beyond the cell's {size} values; its bytes are damaged")
    values = torch.frombuffer(bytearray(slot[3 + count * place.itemsize : end]), dtype=dtype).float().numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"cell {cell}: an outlier is not finite; its bytes are damaged")
    return slot[0] & ~OUTLIER_BIT, (places, values), slot[end:]


def _place_dtype(size: int) -> str:
    return "<u2" if size <= 65_536 else "<u4"


def pack_bits(values: np.ndarray, width: int) -> np.ndarray:
    """values [cells, tokens, channels] uint8 of `width` bits as bytes [cells, width * ceil(tokens / 8) * channels]."""
    e = np.split(np.pad(values, ((0, 0), (0, -values.shape[1] % 8), (0, 0))), 8, axis=1)
    per_byte = 8 // width
    halves = [sum(e[i + j].astype(np.int32) << (width * j) for j in range(per_byte)) for i in range(0, 8, per_byte)]
    return np.concatenate(halves, 1).astype(np.uint8).reshape(len(values), -1)


def unpack_bits(data: list[bytes], width: int, tokens: int, channels: int) -> np.ndarray:
    """The inverse of `pack_bits`: [cells, tokens, channels] uint8. Raises ValueError for bytes of another length."""
    size = width * -(-tokens // 8) * channels
    for d in data:
        if len(d) != size:
            raise ValueError(f"a plain pass has {len(d)} bytes, not {size}; its bytes are damaged")
    packed = np.frombuffer(b"".join(data), dtype=np.uint8).reshape(len(data), width, -(-tokens // 8), channels)
    eighths = [(packed[:, half] >> (width * j)) & ((1 << width) - 1) for half in range(width) for j in range(8 // width)]
    return np.concatenate(eighths, 1)[:, :tokens]


def can_rotate(cells: Cells) -> bool:
    """Whether a strip is a whole head of K, so that channels c and c + dim / 2 rotate together."""
    return cells.shape[1] > 1 and cells.dim == cells.layout.model.head_dim and cells.dim % 2 == 0


def rotation_of_cells(cells: Cells, theta: float) -> np.ndarray | None:
    """Angles of all coded tokens; None without a base (theta = 0). Positions count from the first coded token: the phase that this leaves
    out is part of a strip's centre."""
    return rotation_of(sum(cells.tile_lengths), cells.dim, theta) if theta > 0 else None


def statistics_bytes(cells: Cells, itemsize: int, levels: np.ndarray) -> int:
    """Bytes of `pack_statistics`; 0 if there are no cells. levels: [strips] uint8."""
    strips = int(np.prod(cells.shape[:3]))
    scales = int((levels.astype(np.int64) + 1).sum()) * cells.dim
    return strips * cells.dim * itemsize + scales + -(-strips // 8) + 8 if cells.count else 0


def pack_statistics(centre: np.ndarray, scales: list[np.ndarray], rotates: np.ndarray, theta: float, dtype: torch.dtype) -> bytes:
    """centre: [strips, dim] float32. scales: for each strip, [(levels + 1) * dim] uint8. rotates: [strips] bool. theta: the base of
    RoPE."""
    centres = torch.from_numpy(centre).to(dtype).view(torch.uint8).numpy().tobytes()
    return b"".join((centres, np.packbits(rotates.reshape(-1)).tobytes(), struct.pack("<d", theta), *(scale.tobytes() for scale in scales)))


def read_statistics(
    data: bytes, cells: Cells, dtype: torch.dtype, levels: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, float]:
    """Centres [strips, dim], scales of each strip, rotates [strips], and the base of RoPE. Raises ValueError if the bytes are found not to
    be those of an encoder."""
    strips = len(levels)
    at = strips * cells.dim * dtype.itemsize
    centre = torch.frombuffer(bytearray(data[:at]), dtype=dtype).float().numpy().reshape(strips, cells.dim)
    bits = np.frombuffer(data, np.uint8, -(-strips // 8), at)
    (theta,) = struct.unpack_from("<d", data, at + len(bits))
    rotates = np.unpackbits(bits, count=strips).astype(bool)
    if not (np.isfinite(theta) and theta >= 0) or (rotates.any() and not (theta > 0 and can_rotate(cells))):
        raise ValueError(f"stream is not valid: centres rotate with base {theta}")
    ends = ((levels.astype(np.int64) + 1) * cells.dim).cumsum()
    scale = np.frombuffer(data, np.uint8, int(ends[-1]), at + len(bits) + 8)
    return centre, np.split(scale, ends[:-1]), rotates, theta

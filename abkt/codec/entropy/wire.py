"""How the passes of the entropy form lie in bytes beside rANS: what pass 1 begins with, and passes that are packed as plain bits."""

from __future__ import annotations

import struct

import numpy as np
import torch

OUTLIER_BIT = 32  # of the metadata: outliers follow


def head_of(meta: int, outlier: np.ndarray, x: np.ndarray, dtype: torch.dtype) -> bytes:
    """What pass 1 of a cell begins with: metadata and outliers."""
    places = np.flatnonzero(outlier)
    if not len(places):
        return bytes([meta])
    values = torch.from_numpy(x.reshape(-1)[places].copy()).to(dtype).view(torch.uint8).numpy().tobytes()
    return b"".join((bytes([meta | OUTLIER_BIT]), struct.pack("<H", len(places)), places.astype(_place_dtype(x.size)).tobytes(), values))


def read_head(slot: bytes, cell: int, size: int, dtype: torch.dtype) -> tuple[int, tuple[np.ndarray, np.ndarray], bytes]:
    """Metadata, outliers (places in the cell's `size` values, and values) and the rest of pass 1. Raises ValueError for damage."""
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

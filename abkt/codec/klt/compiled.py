"""The bit-planes compiled: planes.cpp, built once with g++ for this machine, writes the bytes of planes.py. Without g++ the same calls run
that."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from abkt.codec.compile import library_or_none
from abkt.codec.klt import planes, table
from abkt.codec.klt.planes import CLASSES, CONTEXTS, MOST, POINTS, PlaneTables

SOURCE = Path(__file__).with_name("planes.cpp")
MOST_DIMS = 512  # coefficients of a cell, as in planes.cpp


@cache
def load() -> ctypes.CDLL | None:
    """The compiled coder; or None, with one warning in the log that gives the reason, if g++ is missing or cannot build it."""
    loaded = library_or_none(SOURCE, "Python runs in its place, hundreds of times slower")
    if loaded is None:
        return None
    loaded.abkt_klt_encode.restype = loaded.abkt_klt_pack.restype = ctypes.c_int64
    loaded.abkt_klt_decode.restype = loaded.abkt_klt_unpack.restype = None
    return loaded


@dataclass(frozen=True, slots=True)
class Seen:
    """What coefficients turned out to be: from it a calibration makes its PlaneTables.

    bits: [CONTEXTS, 2] int64, how often each context's bit was 0 and 1. offsets: [CLASSES, POINTS, 2] float64, sum of where in its bin a
    magnitude lay, and how many.
    """

    bits: np.ndarray = field(default_factory=lambda: np.zeros((CONTEXTS, 2), dtype=np.int64))
    offsets: np.ndarray = field(default_factory=lambda: np.zeros((CLASSES, POINTS, 2)))


def encode_cell(
    y: np.ndarray, token: np.ndarray, klass: np.ndarray, tables: PlaneTables, seen: Seen | None = None
) -> tuple[list[bytes], np.ndarray]:
    """As planes.encode_cell, byte for byte. seen: is added to; it needs the compiled coder."""
    compiled = load()
    if compiled is None:
        if seen is not None:
            raise ValueError("a calibration of the klt coder needs a working g++, and none was found; install it")
        return planes.encode_cell(y, token, klass, tables)
    y, token, klass = np.ascontiguousarray(y, np.float32), np.ascontiguousarray(token, np.int32), np.ascontiguousarray(klass, np.int32)
    passes = len(tables.planes)
    out, sizes, errors = np.empty(64 * passes + 8 * y.size * passes, np.uint8), np.zeros(passes, np.int64), np.empty(passes + 1)
    given = [np.ascontiguousarray(a) for a in (np.array(tables.planes, np.int32), tables.chances, tables.points)]
    failed = compiled.abkt_klt_encode(
        *(ctypes.c_int64(v) for v in y.shape), _at(y), _at(token), _at(klass), ctypes.c_int64(passes), *map(_at, given),
        _at(out), ctypes.c_int64(out.size), _at(sizes), _at(errors),
        _at(seen.bits) if seen else None, _at(seen.offsets) if seen else None,
    )  # fmt: skip
    if failed:
        raise ValueError(f"a coefficient is not below {MOST} finest steps")
    ends = sizes.cumsum()
    return [out[end - size : end].tobytes() for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)], errors


def decode_cell(slots: Sequence[bytes], token: np.ndarray, klass: np.ndarray, tables: PlaneTables) -> np.ndarray:
    """As planes.decode_cell."""
    compiled = load() if len(klass) <= MOST_DIMS else None
    if compiled is None:
        return planes.decode_cell(slots, token, klass, tables)
    token, klass = np.ascontiguousarray(token, np.int32), np.ascontiguousarray(klass, np.int32)
    sizes = np.array([len(slot) for slot in slots], dtype=np.int64)
    data, starts = np.frombuffer(b"".join(slots) or b"\0", dtype=np.uint8), sizes.cumsum() - sizes
    given = [np.ascontiguousarray(a) for a in (np.array(tables.planes, np.int32), tables.chances, tables.points)]
    y = np.empty((len(token), len(klass)), np.float32)
    compiled.abkt_klt_decode(
        *(ctypes.c_int64(v) for v in y.shape), _at(token), _at(klass), ctypes.c_int64(len(slots)), _at(given[0]),
        ctypes.c_int64(tables.planes[-1]), _at(given[1]), _at(given[2]), _at(data), _at(starts), _at(sizes), _at(y),
    )  # fmt: skip
    return y


def pack(values: np.ndarray, predicts: bool) -> bytes:
    """As table.pack, byte for byte."""
    compiled = load()
    if compiled is None:
        return table.pack(values, predicts)
    values = np.ascontiguousarray(values, np.int32)
    out = np.empty(64 + 8 * values.size, np.uint8)
    size = compiled.abkt_klt_pack(
        *map(ctypes.c_int64, values.shape), _at(values), ctypes.c_int64(predicts), _at(out), ctypes.c_int64(out.size)
    )
    return out[:size].tobytes()


def unpack(data: bytes, rows: int, columns: int, predicts: bool) -> np.ndarray:
    """As table.unpack."""
    compiled = load()
    if compiled is None:
        return table.unpack(data, rows, columns, predicts)
    values, given = np.empty((rows, columns), np.int32), np.frombuffer(data or b"\0", dtype=np.uint8)
    size = (ctypes.c_int64(rows), ctypes.c_int64(columns))
    compiled.abkt_klt_unpack(*size, _at(values), ctypes.c_int64(predicts), _at(given), ctypes.c_int64(len(data)))
    return values


def _at(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)

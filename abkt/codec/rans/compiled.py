"""rANS compiled: compiled.cpp, built once with g++ for this machine, writes the bytes of oracle.py. Without g++ the same calls run the
oracle.

The compiled coder keeps eight states in registers and needs no division: it multiplies by the inverse of a share instead (rans/rans.h).
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

from abkt.codec.compile import library_or_none
from abkt.codec.rans import oracle as rans
from abkt.codec.rans.oracle import SHARES, check_contexts, check_symbols, checked, most_bytes

SOURCE = Path(__file__).with_name("compiled.cpp")
SHARE_BYTES, INTERVAL_BYTES = 16, 4  # struct Share and struct Interval of rans/rans.h


@cache
def load() -> ctypes.CDLL | None:
    """The compiled coder; or None, with one warning in the log that gives the reason, if g++ is missing or cannot build it."""
    loaded = library_or_none(SOURCE, "numpy runs in its place, about 10 times slower")
    if loaded is None:
        return None
    loaded.abkt_rans_encode.restype = loaded.abkt_rans_decode.restype = ctypes.c_int64
    return loaded


def encode(symbols: np.ndarray, contexts: np.ndarray, tables: np.ndarray) -> list[bytes]:
    """As oracle.encode, byte for byte."""
    compiled = load()
    if compiled is None:
        return rans.encode(symbols, contexts, tables)
    checked(symbols, contexts, tables)
    check_contexts(contexts, tables)
    if symbols.size and symbols.max() >= tables.shape[1]:
        check_symbols(symbols, contexts, tables)
    streams, n = symbols.shape
    capacity = most_bytes(n)
    out, sizes = np.empty((streams, capacity), dtype=np.uint8), np.empty(streams, dtype=np.int64)
    work = np.empty(tables.size * SHARE_BYTES, dtype=np.uint8)
    given = [np.ascontiguousarray(a) for a in (symbols, contexts, tables)]
    absent = compiled.abkt_rans_encode(
        *(ctypes.c_int64(v) for v in (streams, n)), _at(given[0]), _at(given[1]), *(ctypes.c_int64(v) for v in tables.shape),
        _at(given[2]), _at(work), ctypes.c_int64(capacity), _at(out), _at(sizes),
    )  # fmt: skip
    if absent >= 0:
        check_symbols(symbols, contexts, tables)
    return [row[capacity - size :].tobytes() for row, size in zip(out, sizes, strict=True)]


def decode(data: list[bytes], n: int, contexts: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """As oracle.decode: the same symbols, and ValueError for the same damage."""
    compiled = load()
    if compiled is None:
        return rans.decode(data, n, contexts, tables)
    symbols = np.empty((len(data), n), dtype=np.uint8)
    checked(symbols, contexts, tables)
    check_contexts(contexts, tables)
    sizes = np.array([len(d) for d in data], dtype=np.int64)
    offsets = sizes.cumsum() - sizes
    joined = np.frombuffer(b"".join(data) or b"\0", dtype=np.uint8)
    owner, work = np.empty(tables.shape[0] * SHARES, dtype=np.uint8), np.empty(tables.size * INTERVAL_BYTES, dtype=np.uint8)
    given = [np.ascontiguousarray(a) for a in (contexts, tables)]
    damaged = compiled.abkt_rans_decode(
        *(ctypes.c_int64(v) for v in (len(data), n)), _at(joined), _at(offsets), _at(sizes), _at(given[0]),
        *(ctypes.c_int64(v) for v in tables.shape), _at(given[1]), _at(owner), _at(work), _at(symbols),
    )  # fmt: skip
    if damaged >= 0:
        raise ValueError(f"stream {damaged} does not end where it began, or too early; its bytes are damaged")
    return symbols


def _at(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)

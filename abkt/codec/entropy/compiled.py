"""The entropy coder's cells compiled: compiled.cpp, built once with g++ for this machine, writes the bytes of oracle.py. Without g++ the same
calls run that."""

from __future__ import annotations

import ctypes
import logging
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import torch

from abkt.codec.compile import library, reason_of
from abkt.codec.entropy import oracle, tables
from abkt.codec.entropy.oracle import OUTLIERS_IN, TINY, EntropyCells, max_pass_bytes
from abkt.codec.entropy.stats import Stats
from abkt.codec.fixed.quantize import LIMIT

SOURCE = Path(__file__).with_name("compiled.cpp")
DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
EXACT = "-ffp-contract=off"  # the oracle rounds each product and each sum

log = logging.getLogger("abkt.codec")

_INTEGERS = ("cells", "tokens", "dim", "levels", "depth", "dtype", "room", "most_outliers")
_ARRAYS = (
    "x", "centre", "rotation", "place", "strip", "first", "rotates", "coded", "step", "kind", "start", "out", "sizes", "errors", "fallback"
)  # fmt: skip


class _Job(ctypes.Structure):  # as struct Job of compiled.cpp
    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTEGERS),
        *((name, ctypes.c_double) for name in ("limit", "tiny")),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    )


@cache
def load() -> ctypes.CDLL | None:
    """The compiled coder; or None, with one warning in the log that gives the reason, if g++ is missing or cannot build it."""
    try:
        loaded = library(SOURCE, EXACT)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the entropy coder could not be compiled (%s); numpy runs in its place, about 20 times slower", reason_of(error))
        return None
    thresholds = [np.array(values, dtype=np.int32) for values in (tables.OVER, tables.HEAVY)]
    given = [np.ascontiguousarray(a) for a in (tables.SHARES, tables.SKEW, tables.POINTS)]
    loaded.abkt_entropy_tables(*(ctypes.c_void_p(a.ctypes.data) for a in (*given, *thresholds)))  # copied
    return loaded


def encode_cells(
    x: np.ndarray, place: np.ndarray, tokens: int, strip: np.ndarray, stats: Stats, depth: int, dtype: torch.dtype,
    first: np.ndarray | None = None, rotation: np.ndarray | None = None,
) -> EntropyCells:  # fmt: skip
    """As oracle.encode_cells, byte for byte, for cells that lie in x [..., dim] float32; errors differ in their last digits.

    place: [cells], the number of each cell's first token among the tokens of x.
    """
    compiled, dim = load(), x.shape[-1]
    if compiled is None:
        rows = x.reshape(-1, dim)
        return oracle.encode_cells(np.stack([rows[at : at + tokens] for at in place]), strip, stats, depth, dtype, first, rotation)
    if stats.rotates.any() and rotation is None:
        raise ValueError("a strip's centre rotates with the position; give rotation=rotation_of(positions, dim, theta)")
    plan, cells = stats.plan, len(place)
    room = max_pass_bytes(tokens >> stats.levels, dim << stats.levels)
    out, sizes = np.empty(depth * cells * room, np.uint8), np.empty((depth, cells), np.int64)
    errors, fallback = np.empty((depth + 1, cells)), np.empty(cells, np.uint8)
    none = np.zeros(cells if first is None else 0, np.int64)
    arrays = {
        "x": (x, np.float32), "centre": (stats.centre, np.float32), "rotation": (none if rotation is None else rotation, np.float32),
        "place": (place * dim, np.int64), "strip": (strip, np.int64), "first": (none if first is None else first, np.int64),
        "rotates": (stats.rotates, np.uint8), "coded": (plan.coded, np.uint8), "step": (plan.step, np.float32),
        "kind": (plan.kind, np.int32), "start": (plan.start, np.int32),
    }  # fmt: skip
    given = {name: np.ascontiguousarray(array, dtype) for name, (array, dtype) in arrays.items()}
    given |= {"out": out, "sizes": sizes, "errors": errors, "fallback": fallback}
    most = min(tokens * dim // OUTLIERS_IN, 65_535)
    numbers = (cells, tokens, dim, stats.levels, depth, DTYPES[dtype], room, most, LIMIT[dtype], TINY)
    compiled.abkt_entropy_encode(ctypes.byref(_Job(*numbers, *(given[name].ctypes.data for name in _ARRAYS))))
    ends = sizes.T.cumsum().reshape(cells, depth).T
    whole = out[: sizes.sum()].tobytes()
    slots = [[whole[at:end] for at, end in zip(*rows, strict=True)] for rows in zip((ends - sizes).tolist(), ends.tolist(), strict=True)]
    return EntropyCells(slots, errors, fallback.astype(bool))

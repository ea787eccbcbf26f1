"""The entropy coder compiled: compiled.cpp, built once with g++ for this machine, writes the bytes of oracle.py. Without g++ the same calls
run that, and stats.py."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import torch

from abkt.codec.compile import library_or_none
from abkt.codec.entropy import haar, oracle, stats, tables
from abkt.codec.entropy.oracle import OUTLIERS_IN, TINY, EntropyCells, max_pass_bytes
from abkt.codec.entropy.stats import OUTLIER_DEVIATIONS, Stats, rounded, scale_codes
from abkt.codec.entropy.wire import read_head
from abkt.codec.fixed import oracle as fixed
from abkt.codec.fixed.quantize import LIMIT

SOURCE = Path(__file__).with_name("compiled.cpp")
DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
EXACT = ("-ffp-contract=off",)  # the oracle rounds each product and each sum

_INTEGERS = ("cells", "tokens", "dim", "levels", "depth", "dtype", "room", "most_outliers")
_ARRAYS = (
    "x", "centre", "rotation", "place", "strip", "first", "rotates", "coded", "step", "kind", "start", "out", "sizes", "errors", "fallback",
    "have", "at", "outliers", "places", "wire", "meta", "values", "values_out",
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
    loaded = library_or_none(SOURCE, "numpy runs in its place, about 20 times slower", *EXACT)
    if loaded is None:
        return None
    loaded.abkt_entropy_decode.restype = ctypes.c_int64
    thresholds = [np.array(values, dtype=np.int32) for values in (tables.OVER, tables.HEAVY)]
    given = [np.ascontiguousarray(a) for a in (tables.SHARES, tables.SKEW, tables.POINTS)]
    loaded.abkt_entropy_tables(*(ctypes.c_void_p(a.ctypes.data) for a in (*given, *thresholds)))  # copied
    return loaded


def encode_cells(
    x: np.ndarray, place: np.ndarray, tokens: int, strip: np.ndarray, of: Stats, depth: int, dtype: torch.dtype,
    first: np.ndarray | None = None, rotation: np.ndarray | None = None,
) -> EntropyCells:  # fmt: skip
    """As oracle.encode_cells, byte for byte, for cells that lie in x [..., dim] float32; errors differ in their last digits.

    place: [cells], the number of each cell's first token among the tokens of x.
    """
    compiled, dim = load(), x.shape[-1]
    if compiled is None:
        rows = x.reshape(-1, dim)
        return oracle.encode_cells(np.stack([rows[at : at + tokens] for at in place]), strip, of, depth, dtype, first, rotation)
    cells, room = len(place), max_pass_bytes(tokens >> of.levels, dim << of.levels)
    out, sizes = np.empty(depth * cells * room, np.uint8), np.empty((depth, cells), np.int64)
    errors, fallback = np.empty((depth + 1, cells)), np.empty(cells, np.uint8)
    given = _described(strip, of, first, rotation) | {"x": np.ascontiguousarray(x, np.float32), "place": place.astype(np.int64) * dim}
    given |= {"out": out, "sizes": sizes, "errors": errors, "fallback": fallback}
    compiled.abkt_entropy_encode(ctypes.byref(_job((cells, tokens, dim, of.levels, depth, DTYPES[dtype], room), given, dtype)))
    ends = sizes.T.cumsum().reshape(cells, depth).T
    whole = out[: sizes.sum()].tobytes()
    slots = [[whole[at:end] for at, end in zip(*rows, strict=True)] for rows in zip((ends - sizes).tolist(), ends.tolist(), strict=True)]
    return EntropyCells(slots, errors, fallback.astype(bool))


def decode_cells(
    slots: list[list[bytes]], strip: np.ndarray, of: Stats, tokens: int, dtype: torch.dtype,
    first: np.ndarray | None = None, rotation: np.ndarray | None = None, have: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """As oracle.decode_cells: the same values, and ValueError for the same damage."""
    compiled = load()
    if compiled is None:
        return oracle.decode_cells(slots, strip, of, tokens, dtype, first, rotation, have)
    cells, dim, passes = len(strip), of.centre.shape[1], len(slots)
    have = np.full(cells, passes) if have is None else have
    meta, places, values, counts = np.full(cells, tables.GAIN_BIAS, np.uint8), [], [], np.zeros(cells + 1, np.int64)
    bodies = [list(row) for row in slots]
    for cell in np.flatnonzero(have > 0).tolist():
        found = read_head(slots[0][cell], cell, tokens * dim, torch.float32 if of.levels else dtype)
        meta[cell], (at, value), bodies[0][cell] = found
        counts[cell + 1] = len(at)
        if len(at):
            places.append(at)
            values.append(value)
    sizes = np.array([[len(data) for data in row] for row in bodies], np.int64).reshape(passes, cells)
    starts = sizes.cumsum().reshape(sizes.shape) - sizes
    out = np.empty((cells, tokens, dim), np.float32)
    given = _described(strip, of, first, rotation) | {
        "place": np.arange(cells) * tokens * dim, "have": have.astype(np.int64), "at": starts, "sizes": sizes, "outliers": counts.cumsum(),
        "places": np.concatenate((*places, np.zeros(1, np.int64))), "values": np.concatenate((*values, np.zeros(1, np.float32))),
        "meta": meta, "wire": np.frombuffer(b"".join(data for row in bodies for data in row) or b"\0", np.uint8), "values_out": out,
    }  # fmt: skip
    damaged = compiled.abkt_entropy_decode(ctypes.byref(_job((cells, tokens, dim, of.levels, passes, DTYPES[dtype], 0), given, dtype)))
    if damaged >= 0:
        raise ValueError(f"cell {damaged}: a pass does not end where it began, or has another length; its bytes are damaged")
    return out


def _described(strip: np.ndarray, of: Stats, first: np.ndarray | None, rotation: np.ndarray | None) -> dict[str, np.ndarray]:
    """The arrays that a sender and a receiver of cells share. Raises ValueError where a centre rotates by angles that are not given."""
    if of.rotates.any() and rotation is None:
        raise ValueError("a strip's centre rotates with the position; give rotation=rotation_of(positions, dim, theta)")
    plan = of.plan
    arrays = {
        "centre": (of.centre, np.float32), "rotation": (np.zeros(0) if rotation is None else rotation, np.float32),
        "strip": (strip, np.int64), "first": (np.zeros(len(strip)) if first is None else first, np.int64),
        "rotates": (of.rotates, np.uint8), "coded": (plan.coded, np.uint8),
        "step": (plan.step, np.float32), "kind": (plan.kind, np.int32), "start": (plan.start, np.int32),
    }  # fmt: skip
    return {name: np.ascontiguousarray(array, dtype) for name, (array, dtype) in arrays.items()}


def _job(numbers: tuple[int, ...], given: dict[str, np.ndarray], dtype: torch.dtype) -> _Job:
    """numbers: _INTEGERS without the last. The caller holds the arrays while the job runs."""
    _, tokens, dim, *_ = numbers
    pointers = (given[name].ctypes.data if name in given else None for name in _ARRAYS)
    return _Job(*numbers, min(tokens * dim // OUTLIERS_IN, 65_535), LIMIT[dtype], TINY, *pointers)


def strip_groups(
    x: np.ndarray, dtype: torch.dtype, rotation: np.ndarray | None, levels: np.ndarray | int
) -> list[tuple[np.ndarray, Stats]]:
    """As stats.strip_groups."""
    most = levels if isinstance(levels, int) else int(np.max(levels, initial=0))
    compiled, (strips, tokens, dim) = load(), x.shape
    if compiled is None or tokens % (1 << most):
        return stats.strip_groups(x, dtype, rotation, levels)
    sums = _Sums(compiled, np.ascontiguousarray(x, np.float32), LIMIT[dtype], rotation)
    no, yes = np.zeros(strips, bool), np.ones(strips, bool)
    centre, rotates = rounded(sums.means().astype(np.float32), dtype), no
    scale = scale_codes(sums.of_squares(centre, no)[:, 0] / tokens, centre)
    if rotation is not None:
        narrow = torch.bfloat16 if dtype == torch.float32 else dtype
        level = rounded(sums.means(back=True).astype(np.float32), narrow)
        its_scale = scale_codes(sums.of_squares(level, yes, back=False)[:, 0] / tokens, level)
        rotates = its_scale.sum(1, dtype=np.int64) < scale.sum(1, dtype=np.int64)
        centre, scale = np.where(rotates[:, None], level, centre), np.where(rotates[:, None], its_scale, scale)
    squares = sums.of_squares(centre, rotates, most) if most else np.zeros((strips, 1, dim))
    if isinstance(levels, int) and not most:
        levels = np.zeros(strips, dtype=np.uint8)

    def mean_squares(count: int) -> list[tuple[np.ndarray, int]]:
        bands = [(2 * count, count), *((2 * i - 1, i) for i in range(count, 0, -1))]  # sums, then differences from coarse to fine
        return [(squares[:, row] / (tokens >> level), tokens >> level) for row, level in bands]

    chosen = haar.levels_of(mean_squares, tokens, most) if isinstance(levels, int) else levels
    found = []
    for count in np.unique(chosen).tolist():
        here = np.flatnonzero(chosen == count)
        bands = [scale_codes(band[here], centre[here]) for band, _ in mean_squares(count)] if count else [scale[here]]
        found.append((here, Stats(centre[here], np.concatenate(bands, 1), rotates[here], count)))
    return found


def deviation_of(x: np.ndarray, skipped: np.ndarray) -> np.ndarray:
    """Squared deviation of x [strips, tokens, dim] from its channels' means, without the skipped tokens [strips, tokens] bool: [strips]
    float64."""
    compiled = load()
    if compiled is None:
        return fixed.deviation_of(torch.from_numpy(x), torch.from_numpy(~skipped)).numpy()
    x, skipped, found = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(skipped, np.uint8), np.empty(len(x))
    compiled.abkt_entropy_deviation(*map(ctypes.c_int64, x.shape), *map(_at, (x, skipped, found)))
    return found


class _Sums:
    """Sums over the tokens of strips [strips, tokens, dim] float32, without their outliers."""

    def __init__(self, compiled: ctypes.CDLL, x: np.ndarray, limit: float, rotation: np.ndarray | None) -> None:
        self._compiled, self._shape = compiled, x.shape
        self._angles = None if rotation is None else np.ascontiguousarray(rotation, np.float32)  # [tokens, 2, dim / 2]
        strips, _, dim = x.shape
        self._held = (x, np.empty_like(x), np.empty(strips, np.uint8), np.empty((strips, dim)))
        x, kept, changed, mean = self._held
        numbers = (ctypes.c_double(limit), ctypes.c_double(OUTLIER_DEVIATIONS))
        compiled.abkt_entropy_clean(*map(ctypes.c_int64, x.shape), _at(x), *numbers, _at(kept), _at(mean), _at(changed))

    def means(self, back: bool = False) -> np.ndarray:
        """[strips, dim] float64. back: rotate the values back by the angles first."""
        _, _, changed, mean = self._held
        if not back and not changed.any():
            return mean
        strips, tokens, dim = self._shape
        sums, angles = np.empty((strips, dim)), _at(self._angles) if back and self._angles is not None else None
        self._compiled.abkt_entropy_sums(*map(ctypes.c_int64, self._shape), *map(_at, self._held), angles, _at(sums))
        return sums / tokens

    def of_squares(self, centre: np.ndarray, rotates: np.ndarray, levels: int = 0, back: bool = True) -> np.ndarray:
        """[strips, 2 * levels + 1, dim] float64, as add_squares of strip.h."""
        strips, _, dim = self._shape
        squares = np.empty((strips, 2 * levels + 1, dim))
        centre, rotates = np.ascontiguousarray(centre, np.float32), np.ascontiguousarray(rotates, np.uint8)
        angles = None if self._angles is None else _at(self._angles)
        numbers = (ctypes.c_int64(back), ctypes.c_int64(levels))
        self._compiled.abkt_entropy_squares(
            *map(ctypes.c_int64, self._shape), *map(_at, (*self._held, centre, rotates)), angles, *numbers, _at(squares)
        )
        return squares


def _at(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)

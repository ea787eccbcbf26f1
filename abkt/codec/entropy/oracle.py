"""The entropy coder's cells, written to be read. It defines the bytes, and is the reference for the Triton kernels.

A value is coded as centre + sign * magnitude. The magnitude is counted in bins of its strip's step (plan.py), which each pass halves or,
in passes 5 and 6, quarters. Pass p sends of a value: its bin, if its channel starts at p; which half or quarter of its bin, if its channel
has started before; and nothing if it has not started. These symbols run token by token, over the channels that have started. They are
coded with rANS (rans/oracle.py) and static tables, by the class of the bin (tables.py): the ratio of the channel's deviation to the step,
corrected by the cell's gain. From pass 3 on they may be packed as plain bits instead (wire.py), where rANS would save next to nothing.

The metadata of a cell are one byte, at the beginning of pass 1: the gain in quarter octaves (4 bits), the shape of its density (bit 4),
and whether it has outliers (bit 5). Gain and shape follow from how many values lie beyond one deviation and beyond three. Without any pass,
a cell decodes to its prediction, and has no bytes.

Outliers are values that their channel's table does not reach. They follow the metadata: their number (16 bits), the place of each in the
cell (16 bits, or 32 where the cell has more than 65,536 values), and the values, in the pool's dtype. From pass 1 on they have no error.

stats.py says how values are predicted, and whether a strip is coded as differences of neighbouring tokens. If it is, "value", "token" and
"channel" above mean those of its transform, and an outlier is a coefficient, carried as float32.

A cell cannot be coded, and its caller sends it verbatim, if a value is not finite, if no value reaches TINY, if more than one value in 64
is an outlier, or if a pass is longer than `max_pass_bytes`. Arithmetic is exact in float32, except for the difference to the prediction and
the sum with it, so all implementations agree bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.cells import WIDTHS
from abkt.codec.entropy.plan import FINER, FINEST, MANTISSAS, PASSES, Plan
from abkt.codec.entropy.stats import Stats, prediction_of
from abkt.codec.entropy.tables import FAR, GAIN_BIAS, GAINS, HALVES, HEAVY, LEAST, MOST, OVER, POINT, POINTS, QUARTERS, SHARES, SKEW, WIDEST
from abkt.codec.entropy.wire import head_of, pack_bits, read_head, unpack_bits
from abkt.codec.fixed.quantize import LIMIT
from abkt.codec.rans import compiled as rans_fast
from abkt.codec.rans.oracle import STATE_BYTES

HEAVY_BIT = 16  # of the metadata
OUTLIERS_IN = 64  # one value in so many may be an outlier
MEASURED_UNTIL = 4  # the gain is measured on the channels that have started by this pass
TINY = 2.0**-28  # a cell whose values all lie within +-TINY, not all 0, travels verbatim: its scales come near the least that is carried
LARGEST = 1 << 22  # magnitude in the finest bins; no table reaches so far


@dataclass(frozen=True, slots=True)
class EntropyCells:
    """slots: [passes][cells], the bytes of each pass. errors: [passes + 1, cells] float64, squared error after no pass, after pass 1, and
    so on. fallback: [cells] bool, cells that must travel verbatim; they have no bytes, and each of their errors is that after no pass."""

    slots: list[list[bytes]]
    errors: np.ndarray
    fallback: np.ndarray


def max_pass_bytes(tokens: int, dim: int) -> int:
    """Bytes that a pass of a cell must not exceed: metadata, states and one byte per value of whole eighths, as a multiple of 16."""
    return -(-(1 + STATE_BYTES + -(-tokens // 8) * 8 * dim) // 16) * 16


def encode_cells(
    x: np.ndarray, strip: np.ndarray, stats: Stats, depth: int, dtype: torch.dtype,
    first: np.ndarray | None = None, rotation: np.ndarray | None = None,
) -> EntropyCells:  # fmt: skip
    """The passes 1 to `depth` of cells x [cells, tokens, dim] float32, values of `dtype`, in strips `strip` [cells].

    first: [cells], position of each cell's first token, and rotation [positions, 2, dim // 2], for strips that rotate. Raises ValueError
    for shapes that do not fit.
    """
    cells, tokens, dim = x.shape
    if stats.centre.shape[1:] != (dim,) or strip.shape != (cells,) or not 1 <= depth <= PASSES or tokens % (1 << stats.levels):
        given = f"cells {x.shape}, strips {strip.shape}, centres {stats.centre.shape}, depth {depth} of {PASSES}"
        raise ValueError(f"{given}, {stats.levels} levels do not fit")
    plan, limit = stats.plan, max_pass_bytes(tokens >> stats.levels, dim << stats.levels)
    prediction = prediction_of(stats, strip, tokens, np.zeros(cells, dtype=np.int64) if first is None else first, rotation)
    most = np.abs(x).max((1, 2))
    fallback = ~(most < LIMIT[dtype]) | ((most > 0) & (most < TINY))
    codable = np.where(fallback[:, None, None], prediction.centre, x).astype(np.float32)
    residual = prediction.coefficients(codable)
    finest = plan.step * np.float32(2.0**-FINEST)
    magnitude = np.minimum(np.abs(residual) * (1 / finest)[strip][:, None], LARGEST).astype(np.int32)
    negative = residual < 0
    meta = metadata_of(magnitude, plan, strip)
    slots: list[list[bytes]] = [[b""] * cells for _ in range(depth)]
    errors = np.zeros((depth + 1, cells))
    outlier = _out_of_reach(magnitude, plan, strip, meta, depth)
    fallback |= outlier.sum((1, 2)) > min(tokens * dim // OUTLIERS_IN, 65_535)
    magnitude[outlier], negative[outlier] = 0, False
    listed, carried = (residual, torch.float32) if stats.levels else (codable, dtype)
    heads = [head_of(m, o, v, carried) for m, o, v in zip(meta.tolist(), outlier, listed, strict=True)]
    for s in np.unique(strip):
        here = np.flatnonzero((strip == s) & ~fallback)
        for p in range(1, depth + 1) if here.size else ():
            for cell, data in zip(here, _encode_pass(magnitude[here], negative[here], meta[here], plan, s, p), strict=True):
                slots[p - 1][cell] = heads[cell] + data if p == 1 else data
    for p in range(depth):
        fallback |= np.array([len(d) > limit for d in slots[p]])
    for p in range(depth + 1):
        guess = reconstruct(magnitude, negative, meta, plan, strip, np.full(cells, p))
        guess = prediction.values(np.where(outlier & (p > 0), residual, guess) if stats.levels else guess, dtype)
        guess = guess if stats.levels else np.where(outlier & (p > 0), codable, guess)
        errors[p] = np.square(codable.astype(np.float64) - guess).sum((1, 2))
    errors[:, fallback] = errors[0, fallback]
    return EntropyCells([[b"" if fell else d for d, fell in zip(row, fallback, strict=True)] for row in slots], errors, fallback)


def decode_cells(
    slots: list[list[bytes]], strip: np.ndarray, stats: Stats, tokens: int, dtype: torch.dtype,
    first: np.ndarray | None = None, rotation: np.ndarray | None = None, have: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """The values of each cell after its first `have` [cells] passes (None: after all given passes): [cells, tokens, dim] float32, values of
    `dtype`.

    slots: [passes][cells]. Raises ValueError if the bytes are found not to be those of an encoder.
    """
    cells, dim = len(strip), stats.centre.shape[1]
    have = np.full(cells, len(slots)) if have is None else have
    plan = stats.plan
    prediction = prediction_of(stats, strip, tokens, np.zeros(cells, dtype=np.int64) if first is None else first, rotation)
    magnitude = np.zeros((cells, tokens >> stats.levels, dim << stats.levels), dtype=np.int32)
    negative = np.zeros(magnitude.shape, dtype=bool)
    meta = np.full(cells, GAIN_BIAS, dtype=np.uint8)
    bodies, outliers = list(slots[0]) if slots else [], {}
    for cell in np.flatnonzero(have > 0).tolist():
        meta[cell], outliers[cell], bodies[cell] = read_head(slots[0][cell], cell, tokens * dim, torch.float32 if stats.levels else dtype)
    for s in np.unique(strip):
        for p in range(1, len(slots) + 1):
            here = np.flatnonzero((strip == s) & (have >= p))
            if not here.size:
                break
            data = [(bodies if p == 1 else slots[p - 1])[cell] for cell in here]
            a, b = _decode_pass(data, magnitude[here], meta[here], plan, s, p)
            magnitude[here] |= a
            negative[here] |= b
    coefficients = reconstruct(magnitude, negative, meta, plan, strip, have)
    out = coefficients if stats.levels else prediction.values(coefficients, dtype)
    for cell, (places, values) in outliers.items():
        out[cell].reshape(-1)[places] = values
    return prediction.values(out, dtype) if stats.levels else out


def metadata_of(magnitude: np.ndarray, plan: Plan, strip: np.ndarray) -> np.ndarray:
    """Gain and shape of each cell, [cells] uint8. magnitude: [cells, tokens, dim] int32, in the finest bins."""
    counted = (plan.start <= MEASURED_UNTIL)[strip][:, None]
    kind = np.where(plan.start <= MEASURED_UNTIL, plan.kind, 0)
    deviation = np.ldexp(np.array(MANTISSAS)[kind & 3], (kind >> 2) + FINEST).astype(np.int32)[strip][:, None]
    members = np.maximum(1, counted.sum((1, 2)) * magnitude.shape[1])
    over = ((magnitude >= deviation) & counted).sum((1, 2)) * 65_536 // members
    far = ((magnitude >= FAR * deviation) & counted).sum((1, 2)) * 65_536 // members
    gain = np.where(counted.any((1, 2)), (over[:, None] > np.array(OVER)).sum(1), GAIN_BIAS)
    return (gain | np.where(far > np.array(HEAVY)[gain], HEAVY_BIT, 0)).astype(np.uint8)


def class_row(meta: np.ndarray, kind: np.ndarray, p: int) -> np.ndarray:
    """Row of bins at pass p in a table [shapes * classes]: [cells, dim]; HALVES where bins are too fine for the table."""
    gain = (meta & (GAINS - 1)).astype(np.int32) - GAIN_BIAS
    classes = POINTS.shape[1]
    found = np.maximum(kind + 4 * FINER[p - 1] + gain[:, None], LEAST) - LEAST
    return np.where(found < classes, found + (meta >= HEAVY_BIT)[:, None] * classes, HALVES)


def _out_of_reach(magnitude: np.ndarray, plan: Plan, strip: np.ndarray, meta: np.ndarray, depth: int) -> np.ndarray:
    """Which values are outliers, bool in the shape of `magnitude`: those for which their channel's table has no symbol, and those 4 steps
    or more from the prediction in a channel that has no symbols."""
    last = 4 << (FINEST - FINER[depth - 1])
    limit = np.full((len(strip), magnitude.shape[2]), last, dtype=np.int64)
    reach = np.append((SHARES[:HALVES, ::2] > 0).sum(1), MOST)
    for p in range(1, depth + 1):
        starts = (plan.start == p)[strip]
        limit = np.where(starts, reach[class_row(meta, plan.kind[strip], p)] << (FINEST - FINER[p - 1]), limit)
    return np.asarray(magnitude >= limit[:, None])


def _symbols(plan: Plan, strip: int, p: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Channels that have started by pass p, [n]; which of them start here, [n] bool; octaves between the pass and the finest bins."""
    active = np.flatnonzero(plan.start[strip] <= p)
    return active, plan.start[strip][active] == p, FINEST - FINER[p - 1]


def _contexts(above: np.ndarray, meta: np.ndarray, plan: Plan, strip: int, p: int) -> np.ndarray:
    """Row of SHARES for every symbol of a pass, [cells, tokens, active] uint8. above: magnitudes so far, in the finest bins."""
    active, starts, shift = _symbols(plan, strip, p)
    kind = plan.kind[strip][active][None]
    if WIDTHS[p - 1] == 2:
        refine = np.full(above.shape, QUARTERS, dtype=np.int32)
    elif p == 1:
        refine = np.zeros(above.shape, dtype=np.int32)
    else:
        skew = np.concatenate((SKEW.reshape(HALVES, WIDEST), np.zeros((1, WIDEST), dtype=np.uint8)))
        bins = np.minimum(above >> (shift + WIDTHS[p - 1]), WIDEST - 1)
        refine = HALVES + skew[class_row(meta, np.broadcast_to(kind, (len(meta), kind.shape[1])), p - 1)[:, None], bins].astype(np.int32)
    begin = np.minimum(class_row(meta, np.broadcast_to(kind, (len(meta), kind.shape[1])), p), HALVES - 1)
    return np.where(starts, begin[:, None], refine).astype(np.uint8)


def _encode_pass(magnitude: np.ndarray, negative: np.ndarray, meta: np.ndarray, plan: Plan, strip: int, p: int) -> list[bytes]:
    active, starts, shift = _symbols(plan, strip, p)
    cells, width = len(magnitude), WIDTHS[p - 1]
    finer = magnitude[..., active] >> shift
    if not plan.coded[strip, p - 1]:
        packed = pack_bits((finer & ((1 << width) - 1)).astype(np.uint8), width)
        return [row.tobytes() for row in packed]
    above = np.where(starts, 0, finer >> width << width) << shift
    symbols = np.where(starts, 2 * finer + negative[..., active], finer & ((1 << width) - 1)).astype(np.uint8)
    contexts = _contexts(above, meta, plan, strip, p)
    return rans_fast.encode(symbols.reshape(cells, -1), contexts.reshape(cells, -1), SHARES)


def _decode_pass(data: list[bytes], above: np.ndarray, meta: np.ndarray, plan: Plan, strip: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """What a pass adds to the magnitudes and to the signs, [cells, tokens, dim] int32 and bool."""
    active, starts, shift = _symbols(plan, strip, p)
    cells, tokens, dim = above.shape
    added, negative = np.zeros((cells, tokens, dim), dtype=np.int32), np.zeros((cells, tokens, dim), dtype=bool)
    if not plan.coded[strip, p - 1]:
        symbols = unpack_bits(data, WIDTHS[p - 1], tokens, len(active))
    else:
        contexts = _contexts(above[..., active], meta, plan, strip, p).reshape(cells, -1)
        symbols = rans_fast.decode(data, tokens * len(active), contexts, SHARES).reshape(cells, tokens, -1)
    added[..., active] = np.where(starts, symbols >> 1, symbols).astype(np.int32) << shift
    negative[..., active] = starts & (symbols & 1 == 1)
    return added, negative


def reconstruct(
    magnitude: np.ndarray, negative: np.ndarray, meta: np.ndarray, plan: Plan, strip: np.ndarray, have: np.ndarray
) -> np.ndarray:
    """The residual of each value after `have` [cells] passes, [cells, tokens, dim] float32, computed without rounding."""
    out = np.zeros(magnitude.shape, dtype=np.float32)
    points = np.concatenate((POINTS.reshape(HALVES, WIDEST), np.full((1, WIDEST), POINT // 2, dtype=np.uint8)))
    for p in range(1, PASSES + 1):
        here = np.flatnonzero(have == p)
        shift = FINEST - FINER[p - 1]
        bins = magnitude[here] >> shift
        rows = class_row(meta[here], plan.kind[strip[here]], p)[:, None]
        place = bins * POINT + points[rows, np.minimum(bins, WIDEST - 1)]
        started = (plan.start[strip[here]] <= p)[:, None]
        size = np.where(started, place, 0).astype(np.float32) * (plan.step[strip[here]][:, None] * np.float32(2.0 ** -(FINER[p - 1] + 6)))
        out[here] = np.where(negative[here], -size, size)
    return out

"""The arithmetic of the entropy coder in Triton: pointers to values, their coefficients, and coefficients from codes. Results equal those
of entropy/oracle.py bit by bit.

A *code* is 2 * magnitude + sign of a coefficient, the magnitude in the finest bins, as int16 [cells, rows, channels]; below 0 it is an
outlier. A program has one cell and visits some rows of coefficients at a time. A row is 2**LEVELS tokens, each a tensor [ROWS, COLS] of
its own, so sums and differences of neighbours are elementwise; where centres may rotate (ROTATES), each token is two such tensors, the
halves that rotate together. These are the *pieces* of a row. No product may be fused with a sum: kernels are launched with
enable_fp_fusion=False.
"""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.entropy import plan as entropy_plan
from abkt.codec.entropy import tables as entropy_tables
from abkt.codec.fixed.instructions import rounded as _rounded

VERBATIM = tl.constexpr(255)  # as in coder.py
FINEST = tl.constexpr(entropy_plan.FINEST)
LEAST, CLASSES = tl.constexpr(entropy_tables.LEAST), tl.constexpr(entropy_tables.CLASSES)
HALVES, WIDEST, POINT = tl.constexpr(entropy_tables.HALVES), tl.constexpr(entropy_tables.WIDEST), tl.constexpr(entropy_tables.POINT)
GAIN_BIAS, GAINS = tl.constexpr(entropy_tables.GAIN_BIAS), tl.constexpr(entropy_tables.GAINS)
HEAVY_BIT, OUTLIER_BIT = tl.constexpr(16), tl.constexpr(32)  # as in entropy/oracle.py and entropy/wire.py
ROOT_HALF = tl.constexpr(0.5**0.5)


@triton.jit
def appended(parts, one):
    """The tuple with one more element."""
    return parts + (one,)  # noqa: RUF005


@triton.jit
def cell_of(program, numbers, tiles, coded_tokens, LEVELS: tl.constexpr, TILE: tl.constexpr):
    """A program's strip (its index in the launch, and its own number), its tile, its cell, and how many rows of coefficients the cell
    has."""
    local, tile = program // tiles, program % tiles
    strip = tl.load(numbers + local)
    return local, strip, tile, strip * tiles + tile, tl.minimum(TILE, coded_tokens - tile * TILE) >> LEVELS


@triton.jit
def frames(
    place, row, held,
    LEVELS: tl.constexpr, ROTATES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    """For the tokens in rows `row` [ROWS] of a tile: pointers into the pool, predictions, and, if centres may rotate, cosines and sines.
    Each is a tuple of tensors [ROWS, COLS]. place: the pool, its table, the strip's centre, whether it rotates, the angles, the number of
    strips, the strip and the tile. held: [ROWS, COLS] bool, which values exist."""
    data, table, centre, rotating, rotation, strips, strip, tile = place
    half: tl.constexpr = DIM // 2 if ROTATES else DIM
    col, some = tl.arange(0, COLS)[None, :], tl.max(held.to(tl.int32), 1) > 0
    a = tl.load(centre + col, mask=col < half, other=0.0)
    at, prediction, cosines, sines = (), (), (), ()
    for token in tl.static_range(1 << LEVELS):
        position = tile * TILE + (row << LEVELS) + token
        block = tl.load(table + position // BLOCK, mask=some, other=0)
        start = ((block * strips + strip) // PARTS * BLOCK + position % BLOCK) * (PARTS * DIM) + strip % PARTS * DIM
        first = data + start[:, None] + col
        at = appended(at, first)
        if ROTATES:
            b = tl.load(centre + half + col, mask=col < half, other=0.0)
            angle = rotation + position.to(tl.int64)[:, None] * DIM + col
            cosine = tl.load(angle, mask=held & rotating, other=1.0)
            sine = tl.load(angle + half, mask=held & rotating, other=0.0)
            at = appended(at, first + half)
            prediction = appended(prediction, tl.where(rotating, a * cosine - b * sine, a))
            prediction = appended(prediction, tl.where(rotating, b * cosine + a * sine, b))
            cosines, sines = appended(cosines, cosine), appended(sines, sine)
        else:
            prediction = appended(prediction, a)
    return at, prediction, cosines, sines


@triton.jit
def loaded(at, held):
    """Values at these pointers, float32."""
    x = ()
    for i in tl.static_range(len(at)):
        x = appended(x, tl.load(at[i], mask=held, other=0.0).to(tl.float32))
    return x


@triton.jit
def rotated(x, cosines, sines, rotating, SIGN: tl.constexpr):
    """Halves x rotated by their angles (SIGN 1) or back (-1), if the strip rotates."""
    out = ()
    for i in tl.static_range(len(cosines)):
        a, b, sine = x[2 * i], x[2 * i + 1], sines[i] * SIGN
        out = appended(out, tl.where(rotating, a * cosines[i] - b * sine, a))
        out = appended(out, tl.where(rotating, b * cosines[i] + a * sine, b))
    return out


@triton.jit
def forward(x, TOKENS: tl.constexpr, SIDES: tl.constexpr):
    """haar.forward of tokens that are SIDES tensors each: the sums, then the differences from coarse to fine."""
    if TOKENS == 1:
        return x
    else:
        sums, fine = (), ()
        for i in tl.static_range(TOKENS // 2):
            for side in tl.static_range(SIDES):
                a, b = x[2 * i * SIDES + side], x[(2 * i + 1) * SIDES + side]
                sums, fine = appended(sums, (a + b) * ROOT_HALF), appended(fine, (a - b) * ROOT_HALF)
        return forward(sums, TOKENS // 2, SIDES) + fine


@triton.jit
def inverse(y, TOKENS: tl.constexpr, SIDES: tl.constexpr):
    """The inverse of `forward`."""
    if TOKENS == 1:
        return y
    else:
        half: tl.constexpr = TOKENS // 2 * SIDES
        sums = inverse(y[:half], TOKENS // 2, SIDES)
        out = ()
        for i in tl.static_range(TOKENS // 2):
            for side in tl.static_range(SIDES):
                out = appended(out, (sums[i * SIDES + side] + y[half + i * SIDES + side]) * ROOT_HALF)
            for side in tl.static_range(SIDES):
                out = appended(out, (sums[i * SIDES + side] - y[half + i * SIDES + side]) * ROOT_HALF)
        return out


@triton.jit
def coefficients(x, prediction, cosines, sines, rotating, LEVELS: tl.constexpr, ROTATES: tl.constexpr):
    """The coefficients of values x."""
    residual = ()
    for i in tl.static_range(len(x)):
        residual = appended(residual, x[i] - prediction[i])
    if LEVELS > 0 and ROTATES:
        residual = rotated(residual, cosines, sines, rotating, -1)
    return forward(residual, 1 << LEVELS, 2 if ROTATES else 1)


@triton.jit
def values(residual, prediction, cosines, sines, rotating, element: tl.constexpr, LEVELS: tl.constexpr, ROTATES: tl.constexpr):
    """Values of these coefficients, float32 rounded to the pool's dtype."""
    residual = inverse(residual, 1 << LEVELS, 2 if ROTATES else 1)
    if LEVELS > 0 and ROTATES:
        residual = rotated(residual, cosines, sines, rotating, 1)
    out = ()
    for i in tl.static_range(len(residual)):
        out = appended(out, _rounded(residual[i] + prediction[i], element))
    return out


@triton.jit
def finer_of(p):
    """Octaves between the step of pass 1 and that of pass p, as in plan.FINER."""
    return p - 1 + tl.maximum(p - 4, 0)


@triton.jit
def class_row(kind, meta):
    """Row of a table [shapes * classes] for bins of class `kind` in a cell with this gain and shape; HALVES where the bins are too fine."""
    found = tl.maximum(kind + (meta & (GAINS - 1)) - GAIN_BIAS, LEAST) - LEAST
    return tl.where(found < CLASSES, found + ((meta & HEAVY_BIT) // HEAVY_BIT) * CLASSES, HALVES)


@triton.jit
def planned(plan, channel, there):
    """Step, class at pass 1, and first pass of channels (strips.Strips)."""
    steps, kinds, starts = plan
    step, kind = tl.load(steps + channel, mask=there, other=1.0), tl.load(kinds + channel, mask=there, other=0)
    return step, kind, tl.load(starts + channel, mask=there, other=1)


@triton.jit
def guessed(code, p, step, kind, start, meta, points):
    """The coefficients that codes stand for after pass p, computed without rounding."""
    octaves = finer_of(p)
    bins = (tl.maximum(code, 0) >> 1) >> (-octaves + FINEST)
    place = bins * POINT + tl.load(points + class_row(kind + 4 * octaves, meta) * WIDEST + tl.minimum(bins, WIDEST - 1)).to(tl.int32)
    scale = ((127 - 6 - octaves) << 23).to(tl.float32, bitcast=True)  # of a point of this pass, in steps of pass 1
    size = tl.where(start <= p, place, 0).to(tl.float32) * (step * scale)
    return tl.where(code & 1 != 0, -size, size)

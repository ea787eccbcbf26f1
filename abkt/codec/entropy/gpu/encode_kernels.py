"""From values in a pool to the codes of the entropy coder, in Triton. pass_kernels.py turns codes into bytes.

A program works on one cell, and each kernel reads it once: `measure_cells` for the metadata, `code_cells` for the codes, and
`list_outliers` only if there are any. `measure_errors` measures the errors from the codes, with one program per pass, so that none has to
keep seven sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.entropy import plan as entropy_plan
from abkt.codec.entropy import tables as entropy_tables
from abkt.codec.entropy.gpu.arithmetic import (  # fmt: skip
    FINEST,
    GAIN_BIAS,
    GAINS,
    HEAVY_BIT,
    OUTLIER_BIT,
    VERBATIM,
    appended,
    cell_of,
    class_row,
    coefficients,
    finer_of,
    frames,
    guessed,
    loaded,
    planned,
    values,
)

FAR = tl.constexpr(entropy_tables.FAR)
LARGEST, OUTLIERS_IN = tl.constexpr(float(1 << 22)), tl.constexpr(64)  # as in entropy/oracle.py
TINY = tl.constexpr(2.0**-28)  # as in entropy/oracle.py
FINEST_BIN = tl.constexpr(2.0**-entropy_plan.FINEST)  # in steps of pass 1


@triton.jit
def _magnitudes(residual, step):
    return tl.minimum(tl.abs(residual) * tl.div_rn(1.0, step * FINEST_BIN), LARGEST).to(tl.int32)


@triton.jit
def _metadata(over, far, members, rules):
    """Gain and shape, from how many of `members` values lie beyond one deviation and beyond FAR."""
    share = over.to(tl.int64) * 65_536 // tl.maximum(members, 1)
    gain = tl.sum((share > tl.load(rules + tl.arange(0, GAINS))).to(tl.int32))
    gain = tl.where(members > 0, gain, GAIN_BIAS)
    heavy = far.to(tl.int64) * 65_536 // tl.maximum(members, 1) > tl.load(rules + GAINS + gain)
    return gain + tl.where(heavy, HEAVY_BIT, 0)


@triton.jit
def _store_bytes(at, word, COUNT: tl.constexpr, mask):
    for byte in tl.static_range(COUNT):
        tl.store(at + byte, ((word >> (8 * byte)) & 255).to(tl.uint8), mask=mask)


@triton.jit
def measure_cells(
    data, table, numbers, centres, rotates, rotation, steps, deviations, rules, metas, classes, sums, strips, tiles, coded_tokens,
    LEVELS: tl.constexpr, ROTATES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """Metadata and channel sums of one cell, or its class if it travels verbatim; classes must be 0 before. rules: int32: OVER, one more
    threshold that nothing exceeds, HEAVY, and how many magnitudes each row of SHARES has. sums: float32 [cells, DIM]."""
    local, strip, tile, cell, rows = cell_of(tl.program_id(0), numbers, tiles, coded_tokens, LEVELS, TILE)
    sides: tl.constexpr = 2 if ROTATES else 1
    width: tl.constexpr = DIM // sides
    rotating = tl.load(rotates + local) != 0
    place = (data, table, centres + local * DIM, rotating, rotation, strips, strip, tile)
    col, lane = tl.arange(0, COLS)[None, :], tl.arange(0, COLS)
    none, nought = tl.zeros((ROWS, COLS), dtype=tl.int32), tl.zeros((ROWS, COLS), dtype=tl.float32)
    over, far, members, wild, total, total_b, size = none, none, none, none, nought, nought, nought
    for begin in range(0, rows, ROWS):
        row = begin + tl.arange(0, ROWS)
        held = (row < rows)[:, None] & (col < width)
        at, prediction, cosines, sines = frames(place, row, held, LEVELS, ROTATES, TILE, BLOCK, DIM, PARTS, COLS)
        x, codable = loaded(at, held), ()
        for i in tl.static_range(sides << LEVELS):
            beyond = ~(tl.abs(x[i]) < BOUND)
            wild |= beyond.to(tl.int32)
            size = tl.maximum(size, tl.abs(x[i]))
            codable = appended(codable, tl.where(beyond, 0.0, x[i]))
            if i % sides == 0:
                total += codable[i]
            else:
                total_b += codable[i]
        residual = coefficients(codable, prediction, cosines, sines, rotating, LEVELS, ROTATES)
        for i in tl.static_range(sides << LEVELS):
            channel = local * (DIM << LEVELS) + i * width + col
            deviation = tl.load(deviations + channel, mask=col < width, other=0)
            magnitude = _magnitudes(residual[i], tl.load(steps + channel, mask=col < width, other=1.0))
            counted = held & (deviation > 0)
            members += counted.to(tl.int32)
            over += (counted & (magnitude >= deviation)).to(tl.int32)
            far += (counted & (magnitude >= deviation * FAR)).to(tl.int32)
    most = tl.max(size)
    if (tl.max(wild) > 0) | ((most > 0) & (most < TINY)):
        tl.store(classes + cell, VERBATIM)
    else:
        tl.store(metas + cell, _metadata(tl.sum(over), tl.sum(far), tl.sum(members), rules).to(tl.uint8))
        tl.store(sums + cell * DIM + lane, tl.sum(total, 0), mask=lane < width)
        if ROTATES:
            tl.store(sums + cell * DIM + width + lane, tl.sum(total_b, 0), mask=lane < width)


@triton.jit
def code_cells(
    data, table, numbers, centres, rotates, rotation, steps, kinds, starts, rules, codes, metas, classes, outliers, sums, spreads,
    strips, tiles, coded_tokens,
    PASSES: tl.constexpr, LEVELS: tl.constexpr, ROTATES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Codes of one cell, how many of them are outliers, and the spread of its values around their means, which follow from `sums`;
    VERBATIM if there are too many outliers. outliers: int32 [cells], 0 before."""
    local, strip, tile, cell, rows = cell_of(tl.program_id(0), numbers, tiles, coded_tokens, LEVELS, TILE)
    if tl.load(classes + cell) != VERBATIM:
        sides: tl.constexpr = 2 if ROTATES else 1
        width: tl.constexpr = DIM // sides
        channels: tl.constexpr = DIM << LEVELS
        rotating, meta = tl.load(rotates + local) != 0, tl.load(metas + cell).to(tl.int32)
        place, plan = (data, table, centres + local * DIM, rotating, rotation, strips, strip, tile), (steps, kinds, starts)
        coded, col = codes + cell.to(tl.int64) * (TILE * DIM), tl.arange(0, COLS)[None, :]
        missed, spread = tl.zeros((ROWS, COLS), dtype=tl.int32), tl.zeros((ROWS, COLS), dtype=tl.float32)
        for begin in range(0, rows, ROWS):
            row = begin + tl.arange(0, ROWS)
            held = (row < rows)[:, None] & (col < width)
            at, prediction, cosines, sines = frames(place, row, held, LEVELS, ROTATES, TILE, BLOCK, DIM, PARTS, COLS)
            x = loaded(at, held)
            residual = coefficients(x, prediction, cosines, sines, rotating, LEVELS, ROTATES)
            for i in tl.static_range(sides << LEVELS):
                step, kind, start = planned(plan, local * channels + i * width + col, col < width)
                octaves = finer_of(tl.minimum(start, PASSES))
                reach = tl.load(rules + 2 * GAINS + class_row(kind + 4 * octaves, meta)) << (-octaves + FINEST)
                magnitude = _magnitudes(residual[i], step)
                outlier = held & (magnitude >= tl.where(start <= PASSES, reach, LAST))
                missed += outlier.to(tl.int32)
                code = tl.where(outlier, -1, 2 * magnitude + (residual[i] < 0).to(tl.int32))
                tl.store(coded + row[:, None] * channels + i * width + col, code.to(tl.int16), mask=held)
                mean = tl.load(sums + cell * DIM + i % sides * width + col, mask=col < width, other=0.0) / (rows << LEVELS)
                away = tl.where(held, x[i] - mean, 0.0)
                spread += away * away
        count = tl.sum(missed)
        if count > tl.minimum(rows * channels // OUTLIERS_IN, 65_535):
            tl.store(classes + cell, VERBATIM)
        else:
            tl.store(outliers + cell, count)
            tl.store(spreads + cell, tl.sum(spread))


@triton.jit
def list_outliers(
    data, table, numbers, centres, rotates, rotation, codes, metas, classes, outliers, heads, head_sizes, strips, tiles, coded_tokens,
    head_capacity,
    LEVELS: tl.constexpr, ROTATES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The head of pass 1 of a cell, as wire.head_of: metadata, and the outliers. heads: uint8 [cells, head_capacity]."""
    local, strip, tile, cell, rows = cell_of(tl.program_id(0), numbers, tiles, coded_tokens, LEVELS, TILE)
    if tl.load(classes + cell) != VERBATIM:
        sides: tl.constexpr = 2 if ROTATES else 1
        width: tl.constexpr = DIM // sides
        channels: tl.constexpr = DIM << LEVELS
        carried: tl.constexpr = 4 if LEVELS > 0 else data.dtype.element_ty.primitive_bitwidth // 8
        count, wide = tl.load(outliers + cell), rows * channels > 65_536
        head = heads + cell.to(tl.int64) * head_capacity
        head_values = head + 3 + count * tl.where(wide, 4, 2)
        tl.store(head_sizes + cell, tl.where(count > 0, 3 + count * (tl.where(wide, 4, 2) + carried), 1).to(tl.int64))
        tl.store(head, (tl.load(metas + cell).to(tl.int32) + tl.where(count > 0, OUTLIER_BIT, 0)).to(tl.uint8))
        _store_bytes(head + 1, count, 2, count > 0)
        rotating = tl.load(rotates + local) != 0
        place = (data, table, centres + local * DIM, rotating, rotation, strips, strip, tile)
        coded, col, listed = codes + cell.to(tl.int64) * (TILE * DIM), tl.arange(0, COLS)[None, :], 0
        for begin in range(0, tl.where(count > 0, rows, 0), ROWS):
            row = begin + tl.arange(0, ROWS)
            held = (row < rows)[:, None] & (col < width)
            at, prediction, cosines, sines = frames(place, row, held, LEVELS, ROTATES, TILE, BLOCK, DIM, PARTS, COLS)
            residual = coefficients(loaded(at, held), prediction, cosines, sines, rotating, LEVELS, ROTATES)
            found, each = (), tl.zeros((ROWS,), dtype=tl.int32)
            for i in tl.static_range(sides << LEVELS):
                code = tl.load(coded + row[:, None] * channels + i * width + col, mask=held, other=0)
                found = appended(found, (code < 0).to(tl.int32))
                each += tl.sum(found[i], 1)
            before = listed + tl.cumsum(each, 0) - each  # outliers are listed row by row, and piece after piece within a row
            for i in tl.static_range(sides << LEVELS):
                rank, outlier = before[:, None] + tl.cumsum(found[i], 1) - found[i], found[i] > 0
                number = row[:, None] * channels + i * width + col
                if LEVELS > 0:
                    bits = residual[i].to(tl.int32, bitcast=True)
                elif carried == 4:
                    bits = tl.load(at[i], mask=outlier, other=0.0).to(tl.int32, bitcast=True)
                else:
                    bits = tl.load(at[i], mask=outlier, other=0.0).to(tl.int16, bitcast=True).to(tl.int32)
                if wide:
                    _store_bytes(head + 3 + 4 * rank, number, 4, outlier)
                else:
                    _store_bytes(head + 3 + 2 * rank, number, 2, outlier)
                _store_bytes(head_values + carried * rank, bits, carried, outlier)
                before += tl.sum(found[i], 1)
            listed += tl.sum(each)


@triton.jit
def measure_errors(
    data, table, numbers, centres, rotates, rotation, steps, kinds, starts, points, codes, metas, classes, errors, cells, strips, tiles,
    coded_tokens,
    PASSES: tl.constexpr, LEVELS: tl.constexpr, ROTATES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Squared error of one cell after one pass; nothing is written for a verbatim cell. errors: float32 [PASSES + 1, cells]."""
    p = tl.program_id(0) % (PASSES + 1)
    local, strip, tile, cell, rows = cell_of(tl.program_id(0) // (PASSES + 1), numbers, tiles, coded_tokens, LEVELS, TILE)
    if tl.load(classes + cell) != VERBATIM:
        sides: tl.constexpr = 2 if ROTATES else 1
        width: tl.constexpr = DIM // sides
        channels: tl.constexpr = DIM << LEVELS
        rotating, meta = tl.load(rotates + local) != 0, tl.load(metas + cell).to(tl.int32)
        place, plan = (data, table, centres + local * DIM, rotating, rotation, strips, strip, tile), (steps, kinds, starts)
        coded, col = codes + cell.to(tl.int64) * (TILE * DIM), tl.arange(0, COLS)[None, :]
        missed = tl.zeros((ROWS, COLS), dtype=tl.float32)
        for begin in range(0, rows, ROWS):
            row = begin + tl.arange(0, ROWS)
            held = (row < rows)[:, None] & (col < width)
            at, prediction, cosines, sines = frames(place, row, held, LEVELS, ROTATES, TILE, BLOCK, DIM, PARTS, COLS)
            x = loaded(at, held)
            residual, guess, known = coefficients(x, prediction, cosines, sines, rotating, LEVELS, ROTATES), (), ()
            for i in tl.static_range(sides << LEVELS):
                code = tl.load(coded + row[:, None] * channels + i * width + col, mask=held, other=0).to(tl.int32)
                step, kind, start = planned(plan, local * channels + i * width + col, col < width)
                known = appended(known, (code < 0) & (p > 0))
                guess = appended(guess, tl.where(known[i], residual[i], guessed(code, p, step, kind, start, meta, points)))
            y = values(guess, prediction, cosines, sines, rotating, data.dtype.element_ty, LEVELS, ROTATES)
            for i in tl.static_range(sides << LEVELS):
                counts = held & ~known[i] if LEVELS == 0 else held  # without differences, an outlier is carried without error
                away = tl.where(counts, x[i] - y[i], 0.0)
                missed += away * away
        tl.store(errors + p * cells + cell, tl.sum(missed))

"""From codes to values in a pool, in Triton: `read_heads` runs before the passes of pass_kernels.py, `fill_cells` after them."""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.entropy.gpu.arithmetic import OUTLIER_BIT, VERBATIM, appended, cell_of, frames, guessed, planned, values

CHUNK = tl.constexpr(128)  # outliers at a time


@triton.jit
def _word(at, mask, BYTES: tl.constexpr):
    """Little-endian words at pointers to bytes, int32."""
    word = tl.load(at, mask=mask, other=0).to(tl.int32)
    for byte in tl.static_range(1, BYTES):
        word |= tl.load(at + byte, mask=mask, other=0).to(tl.int32) << (8 * byte)
    return word


@triton.jit
def _places(at, wide, mask):
    """Places of outliers in their cell, from the list in pass 1, of 16 or 32 bits each."""
    return _word(at, mask & ~wide, 2) | _word(at, mask & wide, 4)


@triton.jit
def _carried(at, mask, element: tl.constexpr, BYTES: tl.constexpr):
    """Values of outliers, float32."""
    bits = _word(at, mask, BYTES)
    if BYTES == 4:
        return bits.to(tl.float32, bitcast=True)
    else:
        return bits.to(tl.int16).to(element, bitcast=True).to(tl.float32)


@triton.jit
def read_heads(
    data, numbers, classes, present, wire, length, offsets, sizes, head_sizes, metas, counts, damaged, cells, tiles, coded_tokens,
    LEVELS: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Read the head of pass 1 of a cell that has a pass: the size of the head, metadata, and the number of outliers. damaged: set to 1 if
    no encoder wrote the head; the cell has no outliers then."""
    _local, _strip, _tile, cell, rows = cell_of(tl.program_id(0), numbers, tiles, coded_tokens, LEVELS, TILE)
    if (tl.load(classes + cell) != VERBATIM) & (tl.load(present + cell) > 0):
        element: tl.constexpr = data.dtype.element_ty
        carried: tl.constexpr = 4 if LEVELS > 0 else element.primitive_bitwidth // 8
        offset, size = tl.load(offsets + cells + cell), tl.load(sizes + cells + cell)
        head = wire + offset
        good = (offset >= 0) & (size > 0) & (offset <= length - size)
        first = tl.load(head, mask=good, other=255).to(tl.int32)
        good &= first < 2 * OUTLIER_BIT
        listed = good & (first >= OUTLIER_BIT)
        count = _word(head + 1, listed & (size >= 3), 2)
        wide = rows * (DIM << LEVELS) > 65_536
        place_bytes = tl.where(wide, 4, 2)
        head_size = 1 + listed.to(tl.int32) * (2 + count * (place_bytes + carried))
        good &= ~listed | ((count > 0) & (head_size <= size))
        wrong = 0
        for begin in range(0, tl.where(good, count, 0), CHUNK):
            number = begin + tl.arange(0, CHUNK)
            held = number < count
            place = _places(head + 3 + number * place_bytes, wide, held)
            value = _carried(head + 3 + count * place_bytes + number * carried, held, tl.float32 if LEVELS > 0 else element, carried)
            beyond = (place < 0) | (place >= rows * (DIM << LEVELS)) | ~(tl.abs(value) <= 3.4028234663852886e38)
            wrong = tl.maximum(wrong, tl.max((held & beyond).to(tl.int32)))
        good &= wrong == 0
        tl.store(metas + cell, (first & (OUTLIER_BIT - 1)).to(tl.uint8))
        tl.store(counts + cell, tl.where(good, count, 0))
        tl.store(head_sizes + cell, tl.where(good, head_size, 0).to(tl.int64))
        tl.store(damaged + cell, (~good).to(tl.uint8))


@triton.jit
def fill_cells(
    data, table, numbers, centres, rotates, rotation, steps, kinds, starts, points, codes, metas, classes, present, wire, offsets, counts,
    damaged, cells, strips, tiles, coded_tokens,
    LEVELS: tl.constexpr, ROTATES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Write the values of one cell into the pool, from as many passes as arrived. Nothing is written for a damaged or a verbatim cell."""
    local, strip, tile, cell, rows = cell_of(tl.program_id(0), numbers, tiles, coded_tokens, LEVELS, TILE)
    if (tl.load(classes + cell) != VERBATIM) & (tl.load(damaged + cell) == 0):
        element: tl.constexpr = data.dtype.element_ty
        carried: tl.constexpr = 4 if LEVELS > 0 else element.primitive_bitwidth // 8
        sides: tl.constexpr = 2 if ROTATES else 1
        width: tl.constexpr = DIM // sides
        channels: tl.constexpr = DIM << LEVELS
        rotating, meta = tl.load(rotates + local) != 0, tl.load(metas + cell).to(tl.int32)
        place, plan = (data, table, centres + local * DIM, rotating, rotation, strips, strip, tile), (steps, kinds, starts)
        coded, col = codes + cell.to(tl.int64) * (TILE * DIM), tl.arange(0, COLS)[None, :]
        count, p = tl.load(counts + cell), tl.load(present + cell).to(tl.int32)
        head = wire + tl.load(offsets + cells + cell, mask=count > 0, other=0) + 3
        place_bytes = tl.where(rows * channels > 65_536, 4, 2)
        head_values = head + count * place_bytes
        for begin in range(0, count, CHUNK):  # an outlier's code gives its place in the list
            number = begin + tl.arange(0, CHUNK)
            at = _places(head + number * place_bytes, rows * channels > 65_536, number < count)
            tl.store(coded + at, (-1 - number).to(tl.int16), mask=number < count)
        tl.debug_barrier()
        for begin in range(0, rows, ROWS):
            row = begin + tl.arange(0, ROWS)
            held = (row < rows)[:, None] & (col < width)
            at, prediction, cosines, sines = frames(place, row, held, LEVELS, ROTATES, TILE, BLOCK, DIM, PARTS, COLS)
            guess, outliers, known = (), (), ()
            for i in tl.static_range(sides << LEVELS):
                code = tl.load(coded + row[:, None] * channels + i * width + col, mask=held, other=0).to(tl.int32)
                step, kind, start = planned(plan, local * channels + i * width + col, col < width)
                known = appended(known, code < 0)
                outliers = appended(
                    outliers, _carried(head_values + (-1 - code) * carried, known[i], tl.float32 if LEVELS > 0 else element, carried)
                )
                found = guessed(code, p, step, kind, start, meta, points)
                guess = appended(guess, tl.where(known[i], outliers[i], found) if LEVELS > 0 else found)
            y = values(guess, prediction, cosines, sines, rotating, element, LEVELS, ROTATES)
            for i in tl.static_range(sides << LEVELS):
                value = y[i] if LEVELS > 0 else tl.where(known[i], outliers[i], y[i])
                tl.store(at[i], value.to(element), mask=held)

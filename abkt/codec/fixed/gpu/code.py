"""The main step of an encode: codes, their sums and the packed passes; and the class, means and moments that follow from the sums."""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.fixed.gpu.instructions import dot4, odd_bytes, quarters_of, widened, word_of
from abkt.codec.fixed.gpu.planes import planes_of
from abkt.codec.fixed.gpu.tile import CLASSES, INVERSE, LOW, rows_of, slot_of, squares_of


@triton.jit
def code(
    data, starts, strip, tile, tokens, centres, groups, parts, body, offsets, cell, cells,
    KEY: tl.constexpr, PACK: tl.constexpr, PASSES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Code the cell. To parts goes what each lane finds of the sums of the codes of its groups, of the sum of all squared codes, and of the
    sums and squares of the values, less the offset of their channel of K or the centre of that of V. PACK: store the passes."""
    row, col, word = tl.arange(0, ROWS), tl.arange(0, COLS), tl.arange(0, COLS // 4)
    NEAR: tl.constexpr = 2 if COLS > 4 else 1  # words of a lane
    lane = tl.arange(0, COLS // 4 // NEAR)
    eighth = TILE // 8 if FULL else (tokens + 7) // 8
    squares = tl.zeros((ROWS, COLS // 4), dtype=_wide(TILE * COLS))
    even, odd = tl.zeros((ROWS, COLS // 4), dtype=tl.int32), tl.zeros((ROWS, COLS // 4), dtype=tl.int32)
    high_even, high_odd = tl.zeros((ROWS, COLS // 4), dtype=tl.int32), tl.zeros((ROWS, COLS // 4), dtype=tl.int32)
    ones = tl.full((ROWS, COLS // 4), 0x01010101, dtype=tl.int32)
    sums = parts.to(tl.pointer_type(tl.int32))
    if KEY:
        centre = 0.0
        low, inverse = tl.load(groups + LOW * SPAN + col)[None, :], tl.load(groups + INVERSE * SPAN + col)[None, :]
    else:
        centre = tl.load(centres + col, mask=col < DIM, other=0.0)[None, :]
        low, inverse = tl.zeros((ROWS, 1), dtype=tl.float32), tl.zeros((ROWS, 1), dtype=tl.float32)
    total, spread = tl.zeros((ROWS, COLS), dtype=tl.float32), tl.zeros((ROWS, COLS // 4 // NEAR), dtype=tl.float32)
    slots = ()
    for index in tl.static_range(1, PASSES + 1):
        slots = slots + (slot_of(body, offsets + index * cells, cell),)
    for first in range(0, eighth, ROWS):
        words = ()
        for part in tl.static_range(8):
            at, mask, token, held = rows_of(data, starts, strip, tile, tokens, part, first, TILE, BLOCK, DIM, PARTS, ROWS, COLS, FULL)
            if FULL and DIM == COLS:
                x = widened(tl.load(at))
            else:
                x = widened(tl.load(at, mask=mask, other=0.0))
            if KEY:
                off = x - low
                scaled = off * inverse
            else:
                off = x - centre
                low = tl.load(groups + LOW * SPAN + token, mask=held, other=0.0)[:, None]
                inverse = tl.load(groups + INVERSE * SPAN + token, mask=held, other=0.0)[:, None]
                scaled = (off - low) * inverse
            if not (FULL and DIM == COLS):
                off, scaled = tl.where(mask, off, 0.0), tl.where(mask, scaled, 0.0)
            if PACK:
                total += off
                spread += squares_of(off, ROWS, COLS)
            t0, t1, t2, t3 = quarters_of(scaled, ROWS, COLS)
            words = words + (word_of(t0, t1, t2, t3),)
        for part in tl.static_range(8):
            squares += dot4(words[part], words[part])
        if KEY:
            part_even, part_odd = words[0] & 0x00FF00FF, odd_bytes(words[0])
            for part in tl.static_range(1, 8):
                part_even, part_odd = part_even + (words[part] & 0x00FF00FF), part_odd + odd_bytes(words[part])
            if TILE <= 256:  # the sum of a channel fits 16 bits
                even, odd = even + part_even, odd + part_odd
            else:
                even, odd = even + (part_even & 0xFFFF), odd + (part_odd & 0xFFFF)
                high_even, high_odd = high_even + (part_even >> 16), high_odd + (part_odd >> 16)
        else:
            for part in tl.static_range(4):  # two tokens at a time: the sum of a token fits 16 bits
                both = dot4(words[part], ones) + dot4(words[part + 4], ones) * 65536
                both = tl.sum(tl.reshape(both, (ROWS, COLS // 4 // NEAR, NEAR)), 2)
                to = sums + (part * eighth + first + row)[:, None] * (COLS // 4 // NEAR) + lane[None, :]
                if FULL:
                    tl.store(to, both)
                else:
                    tl.store(to, both, mask=(first + row < eighth)[:, None])
        if PACK:
            p = planes_of(words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7])
            to, kept = (first + row)[:, None] * (DIM // 4) + word[None, :], (first + row < eighth)[:, None] & (word < DIM // 4)[None, :]
            for index in tl.static_range(1, PASSES + 1):
                if index < 5:
                    tl.store(slots[index - 1] + to, p[index - 1], mask=kept)
                else:
                    tl.store(slots[index - 1] + to, p[2 * index - 6], mask=kept)
                    tl.store(slots[index - 1] + eighth * (DIM // 4) + to, p[2 * index - 5], mask=kept)
    to = row[:, None] * (COLS // 4) + word[None, :]
    if KEY:
        tl.store(sums + to, even)
        tl.store(sums + ROWS * (COLS // 4) + to, odd)
        if TILE > 256:
            tl.store(sums + 2 * ROWS * (COLS // 4) + to, high_even)
            tl.store(sums + 3 * ROWS * (COLS // 4) + to, high_odd)
    squares = tl.sum(tl.reshape(squares, (ROWS, COLS // 4 // NEAR, NEAR)), 2)
    of_lane = row[:, None] * (COLS // 4 // NEAR) + lane[None, :]
    after = (parts + sum_words(KEY, TILE, ROWS, COLS)).to(tl.pointer_type(squares.dtype))
    tl.store(after + of_lane, squares)
    if PACK:
        values = parts + value_words(KEY, TILE, ROWS, COLS)
        tl.store(values + of_lane, spread)
        tl.store(values + ROWS * (COLS // 4 // NEAR) + row[:, None] * COLS + col[None, :], total)


@triton.constexpr_function
def value_words(key, tile, rows, cols):
    """The 32-bit words that _code writes before the sums and squares of the values."""
    lanes = rows * max(1, cols // 8)
    return sum_words(key, tile, rows, cols) + (2 * lanes if tile * cols > 32768 else lanes)


@triton.constexpr_function
def _wide(values):
    """The type of a sum of the squares of so many codes."""
    return tl.int64 if values > 32768 else tl.int32


@triton.constexpr_function
def sum_words(key, tile, rows, cols):
    """The 32-bit words that _code writes before the squares."""
    if key:
        return rows * cols if tile > 256 else rows * cols // 2
    return (tile // 2 + 8) // 4 * 4 * max(1, cols // 8)


@triton.jit
def moments(
    groups, parts, centres, sums, spread, tokens,
    KEY: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Store the sum of each channel, and the squared deviation of all values from the means of their channels."""
    LANES: tl.constexpr = COLS // 8 if COLS > 8 else 1
    values, lane, col = parts + value_words(KEY, TILE, ROWS, COLS), tl.arange(0, ROWS * LANES), tl.arange(0, COLS)
    total = tl.zeros((COLS,), dtype=tl.float32)
    for row in tl.static_range(ROWS):
        total += tl.load(values + ROWS * LANES + row * COLS + col)
    if ROWS * LANES == COLS:  # one sum instead of two
        tl.store(spread, tl.sum(tl.load(values + lane) - total * total / tokens, 0))
    else:
        tl.store(spread, tl.sum(tl.load(values + lane), 0) - tl.sum(total * total, 0) / tokens)
    origin = tl.load(groups + LOW * SPAN + col) if KEY else tl.load(centres + col, mask=col < DIM, other=0.0)
    tl.store(sums + col, total + tokens * origin, mask=col < DIM)


@triton.jit
def classify(parts, tokens, rules, KEY: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr):  # fmt: skip  # noqa: E501
    """The mean of every group as it is carried, in steps, and the class of the cell's variance around them."""
    group, sums = tl.arange(0, SPAN), parts.to(tl.pointer_type(tl.int32))
    members, held = (tokens, group < DIM) if KEY else (DIM, group < tokens)
    LANES: tl.constexpr = COLS // 8 if COLS > 8 else 1
    if KEY:
        all = tl.zeros((SPAN,), dtype=tl.int32)
        for row in tl.static_range(ROWS):
            at = sums + group % 2 * (ROWS * COLS // 4) + row * (COLS // 4) + group // 4
            if TILE <= 256:
                all += (tl.load(at, mask=held, other=0) >> (group % 4 // 2 * 16)) & 0xFFFF
            else:
                all += tl.load(at + group % 4 // 2 * (ROWS * COLS // 2), mask=held, other=0)
    else:
        half = (tokens + 7) // 8 * 4  # token t is counted with token t + half
        at = tl.where(group < half, group, group - half)
        both = tl.sum(tl.load(sums + at[:, None] * LANES + tl.arange(0, LANES)[None, :], mask=held[:, None], other=0), 1)
        all = tl.where(group < half, both, both >> 16) & 0xFFFF
    middle = (2 * all + members) // (32 * members) * 16 + 8
    lane = tl.arange(0, ROWS * LANES)
    squares = (parts + sum_words(KEY, TILE, ROWS, COLS)).to(tl.pointer_type(_wide(TILE * COLS)))
    far = middle.to(_wide(TILE * COLS))
    of_group = tl.where(held, members * far * far - 2 * far * all, 0)
    if ROWS * LANES == SPAN:  # one sum instead of two
        squared = tl.sum(tl.load(squares + lane) + of_group, 0)
    else:
        squared = tl.sum(tl.load(squares + lane), 0) + tl.sum(of_group, 0)
    variance = squared // (tokens * DIM)
    index = tl.arange(0, CLASSES)
    return middle, tl.sum((variance < tl.load(rules + index, mask=index < CLASSES - 1, other=0)).to(tl.int32), 0)

"""The quantiser of quantize.py in Triton: gather, quantise, measure and pack. A program codes cell after cell.

A cell is read three times, in four steps; only the first read goes to memory, since a tile of 128 x 128 bfloat16 is 32 KiB and stays in
the caches. No step holds more than a few rows of each eighth of the tile in registers.

  survey    the extremes of each group
  settle    offset and step of each group; one group a lane, so nothing is computed twice
  code      codes, their sums, and the packed passes
  measure   the errors of one eighth of the tokens after each pass, and their deviation

Steps hand the values of groups to each other through `scratch`, a few KiB for each program, because each step wants them in other lanes.
Bytes equal the oracle's; errors and deviations differ in their last digits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.fixed.instructions import code_of, dot4, least_of, most_of, odd_bytes, quarters_of, rounded, widened, word_of
from abkt.codec.fixed.plane_kernels import planes_of
from abkt.codec.fixed.tile_kernels import even_part, place, rows_of, scale_of

VERBATIM = tl.constexpr(255)  # as in coder.py
NARROW_FROM = tl.constexpr(3)  # as in quantize.py
MEASURED_WHOLE = tl.constexpr(64)  # as in quantize.py
CLASSES = tl.constexpr(16)
TINY = tl.constexpr(2.0**-48)  # as in quantize.py
ONE_AND_CODE = tl.constexpr(0x43800000)  # 256 as a float32, whose upper eight bits of mantissa are free for a code
LOW, STEP, INVERSE, MEAN, GROUP_ROWS = (tl.constexpr(i) for i in range(5))  # rows of groups in the scratch of a program


@triton.jit
def _least(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _most(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _survey_keys(
    data, starts, strip, tile, tokens, parts,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """The least and greatest value of each channel, NaN if there is one, into parts [2, ROWS, COLS]: of every ROWS-th token each."""
    element: tl.constexpr = data.dtype.element_ty
    least = tl.full((ROWS, COLS), float("inf"), dtype=tl.float32).to(element)
    most = tl.full((ROWS, COLS), float("-inf"), dtype=tl.float32).to(element)
    for first in range(0, TILE // 8 if FULL else (tokens + 7) // 8, ROWS):
        for part in tl.static_range(8):
            at, mask, _token, _held = rows_of(data, starts, strip, tile, tokens, part, first, TILE, BLOCK, DIM, PARTS, ROWS, COLS, FULL)
            if FULL and DIM == COLS:
                x = tl.load(at)
                least, most = least_of(least, x), most_of(most, x)
            else:
                x = tl.load(at, mask=mask, other=0.0)
                least, most = tl.where(mask, least_of(least, x), least), tl.where(mask, most_of(most, x), most)
    to = parts.to(tl.pointer_type(element)) + tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    tl.store(to, least)
    tl.store(to + ROWS * COLS, most)


@triton.jit
def _survey_values(
    data, starts, strip, tile, tokens, centres, parts,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr,
    TOKENS: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """The least and greatest value of each token, less the centre of its channel, into parts [2, SPAN, lanes of a token]. A row is read in
    chunks, so that few lanes share a token."""
    CHUNK: tl.constexpr = 32 if COLS > 32 else COLS
    NEAR: tl.constexpr = 8 if COLS > 8 else COLS
    LANES: tl.constexpr = CHUNK // NEAR
    head_dim: tl.constexpr = PARTS * DIM
    chunk, col = tl.arange(0, COLS // CHUNK), tl.arange(0, CHUNK)
    channel = (chunk * CHUNK)[:, None, None] + col[None, None, :]
    all = tl.arange(0, COLS)
    centre = tl.reshape(tl.load(centres + all, mask=all < DIM, other=0.0), (COLS // CHUNK, 1, CHUNK))
    in_block = strip // PARTS * (BLOCK * head_dim) + strip % PARTS * DIM
    for first in range(0, TILE if FULL else tokens, TOKENS):
        token = (first + tl.arange(0, TOKENS)).to(tl.uint32)
        held = token < tokens
        start = tl.load(starts + tile * (TILE // BLOCK) + token // BLOCK, mask=held, other=0)
        start = tl.multiple_of(start, even_part(BLOCK * head_dim)) + in_block + (token % BLOCK * head_dim).to(tl.int32)
        mask = (channel < DIM) & held[None, :, None]
        if FULL and DIM == COLS and TILE % TOKENS == 0:
            y = widened(tl.load(data + start[None, :, None] + channel)) - centre
            below, above = y, y
        else:
            y = widened(tl.load(data + start[None, :, None] + channel, mask=mask, other=0.0)) - centre
            below, above = tl.where(channel < DIM, y, float("inf")), tl.where(channel < DIM, y, float("-inf"))
        shape: tl.constexpr = (COLS // CHUNK, TOKENS, LANES, NEAR)
        below, above = tl.reduce(tl.reshape(below, shape), 3, _least), tl.reduce(tl.reshape(above, shape), 3, _most)
        to = parts + token.to(tl.int32)[:, None] * LANES + tl.arange(0, LANES)[None, :]
        tl.store(to, tl.reduce(below, 0, _least), mask=held[:, None])
        tl.store(to + SPAN * LANES, tl.reduce(above, 0, _most), mask=held[:, None])


@triton.jit
def _extremes(parts, tokens, element: tl.constexpr, KEY: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr):  # fmt: skip  # noqa: E501
    """The extremes of every group from what a survey left in parts; 0 for groups that are not there."""
    group = tl.arange(0, SPAN)
    if KEY:
        held, at = group < DIM, parts.to(tl.pointer_type(element)) + group
        least = tl.load(at, mask=held, other=0.0).to(tl.float32)
        most = tl.load(at + ROWS * COLS, mask=held, other=0.0).to(tl.float32)
        for row in tl.static_range(1, ROWS):
            least = _least(least, tl.load(at + row * COLS, mask=held, other=0.0).to(tl.float32))
            most = _most(most, tl.load(at + (ROWS + row) * COLS, mask=held, other=0.0).to(tl.float32))
    else:
        NEAR: tl.constexpr = 8 if COLS > 8 else COLS
        LANES: tl.constexpr = (32 if COLS > 32 else COLS) // NEAR
        at, held = parts + group[:, None] * LANES + tl.arange(0, LANES)[None, :], (group < tokens)[:, None]
        least = tl.reduce(tl.load(at, mask=held, other=0.0), 1, _least)
        most = tl.reduce(tl.load(at + SPAN * LANES, mask=held, other=0.0), 1, _most)
    return least, most


@triton.jit
def _code(
    data, starts, strip, tile, tokens, centres, groups, parts, body, offsets, cell, cells,
    KEY: tl.constexpr, PACK: tl.constexpr, PASSES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Code the cell. What each lane finds of the sums of the codes of its groups, of the sum of all squared codes, and of the sums and squares
    of the values, goes to parts. Values are taken less the offset of their channel of K, or the centre of that of V. PACK: store the passes.
    """
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
                spread += _squares(off, ROWS, COLS)
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
    after = (parts + _sum_words(KEY, TILE, ROWS, COLS)).to(tl.pointer_type(squares.dtype))
    tl.store(after + of_lane, squares)
    if PACK:
        values = parts + _value_words(KEY, TILE, ROWS, COLS)
        tl.store(values + of_lane, spread)
        tl.store(values + ROWS * (COLS // 4 // NEAR) + row[:, None] * COLS + col[None, :], total)


@triton.jit
def slot_of(body, offsets, cell):
    """Where a slot of a cell begins."""
    return (body + tl.multiple_of(tl.load(offsets + cell), 16)).to(tl.pointer_type(tl.int32))


@triton.jit
def _moments(
    groups, parts, centres, sums, spread, tokens,
    KEY: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Store the sum of each channel, and the squared deviation of all values from the means of their channels."""
    LANES: tl.constexpr = COLS // 8 if COLS > 8 else 1
    values, lane, col = parts + _value_words(KEY, TILE, ROWS, COLS), tl.arange(0, ROWS * LANES), tl.arange(0, COLS)
    total = tl.zeros((COLS,), dtype=tl.float32)
    for row in tl.static_range(ROWS):
        total += tl.load(values + ROWS * LANES + row * COLS + col)
    if ROWS * LANES == COLS:  # one sum instead of two
        tl.store(spread, tl.sum(tl.load(values + lane) - total * total / tokens, 0))
    else:
        tl.store(spread, tl.sum(tl.load(values + lane), 0) - tl.sum(total * total, 0) / tokens)
    origin = tl.load(groups + LOW * SPAN + col) if KEY else tl.load(centres + col, mask=col < DIM, other=0.0)
    tl.store(sums + col, total + tokens * origin, mask=col < DIM)


@triton.constexpr_function
def _value_words(key, tile, rows, cols):
    """The 32-bit words that _code writes before the sums and squares of the values."""
    lanes = rows * max(1, cols // 8)
    return _sum_words(key, tile, rows, cols) + (2 * lanes if tile * cols > 32768 else lanes)


@triton.constexpr_function
def _wide(values):
    """The type of a sum of the squares of so many codes."""
    return tl.int64 if values > 32768 else tl.int32


@triton.constexpr_function
def _sum_words(key, tile, rows, cols):
    """The 32-bit words that _code writes before the squares."""
    if key:
        return rows * cols if tile > 256 else rows * cols // 2
    return (tile // 2 + 8) // 4 * 4 * max(1, cols // 8)


@triton.jit
def _settle(groups, least, most, narrow, element: tl.constexpr, KEY: tl.constexpr, SPAN: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr):  # fmt: skip  # noqa: E501
    """Offset, step and inverse of every group, into groups."""
    group = tl.arange(0, SPAN)
    low, step, inverse = scale_of(least, most, narrow, element, KEY, OUTER, INNER)
    tl.store(groups + LOW * SPAN + group, low)
    tl.store(groups + STEP * SPAN + group, step)
    tl.store(groups + INVERSE * SPAN + group, inverse)


@triton.jit
def _classify(parts, tokens, rules, KEY: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr):  # fmt: skip  # noqa: E501
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
    squares = (parts + _sum_words(KEY, TILE, ROWS, COLS)).to(tl.pointer_type(_wide(TILE * COLS)))
    far = middle.to(_wide(TILE * COLS))
    of_group = tl.where(held, members * far * far - 2 * far * all, 0)
    if ROWS * LANES == SPAN:  # one sum instead of two
        squared = tl.sum(tl.load(squares + lane) + of_group, 0)
    else:
        squared = tl.sum(tl.load(squares + lane), 0) + tl.sum(of_group, 0)
    variance = squared // (tokens * DIM)
    index = tl.arange(0, CLASSES)
    return middle, tl.sum((variance < tl.load(rules + index, mask=index < CLASSES - 1, other=0)).to(tl.int32), 0)


@triton.constexpr_function
def unknown_of(index):
    """The codes between which pass `index` does not tell."""
    return 2 ** (8 - (index if index < 5 else 2 * index - 4))


@triton.jit
def _squares(off, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Sums of squares over up to eight neighbouring channels, which lie in one lane."""
    NEAR: tl.constexpr = 8 if COLS > 8 else COLS
    return tl.sum(tl.reshape(off * off, (ROWS, COLS // NEAR, NEAR)), 2)


@triton.jit
def _measure(
    data, starts, strip, tile, tokens, centres, groups, parts, rules, cell_class, part, stop,
    KEY: tl.constexpr, PASSES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """What each lane finds of the squared errors of eighths part to stop - 1 after each pass, into parts.

    The law is low + (middle * (step * (1 - share)) + mean * (step * share)), where all but the outer sum is exact. So the step may be
    multiplied last: two fused multiply-adds.
    """
    element: tl.constexpr = data.dtype.element_ty
    LANES: tl.constexpr = COLS // 8 if COLS > 8 else 1
    row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
    eighth = TILE // 8 if FULL else (tokens + 7) // 8
    if KEY:
        centre = 0.0
        low, step = tl.load(groups + LOW * SPAN + col)[None, :], tl.load(groups + STEP * SPAN + col)[None, :]
        inverse, mean = tl.load(groups + INVERSE * SPAN + col)[None, :], tl.load(groups + MEAN * SPAN + col)[None, :]
    else:
        centre = tl.load(centres + col, mask=col < DIM, other=0.0)[None, :]
        low, step = tl.zeros((ROWS, 1), dtype=tl.float32), tl.zeros((ROWS, 1), dtype=tl.float32)
        inverse, mean = tl.zeros((ROWS, 1), dtype=tl.float32), tl.zeros((ROWS, 1), dtype=tl.float32)
    left = ()
    for _ in tl.static_range(PASSES + 1):
        left = left + (tl.zeros((ROWS, LANES), dtype=tl.float32),)
    for unit in range(part * eighth, stop * eighth, ROWS if FULL else eighth):
        for first in range(0, ROWS if FULL else eighth, ROWS):
            if FULL:
                at, mask, token, held = rows_of(data, starts, strip, tile, tokens, 0, unit, TILE, BLOCK, DIM, PARTS, ROWS, COLS, FULL)
            else:
                at, mask, token, held = rows_of(data, starts, strip, tile, tokens, unit // eighth, first, TILE, BLOCK, DIM, PARTS, ROWS, COLS, FULL)  # fmt: skip  # noqa: E501
            if not KEY:
                low = tl.load(groups + LOW * SPAN + token, mask=held, other=0.0)[:, None]
                step = tl.load(groups + STEP * SPAN + token, mask=held, other=0.0)[:, None]
                inverse = tl.load(groups + INVERSE * SPAN + token, mask=held, other=0.0)[:, None]
                mean = tl.load(groups + MEAN * SPAN + token, mask=held, other=0.0)[:, None]
            x = widened(tl.load(at) if FULL and DIM == COLS else tl.load(at, mask=mask, other=0.0))
            code = (code_of((x - centre - low) * inverse) << 15) | ONE_AND_CODE
            now = ()
            for index in tl.static_range(PASSES + 1):
                unknown = unknown_of(index)
                if index == 0:
                    inner = mean
                else:
                    share = tl.load(rules + CLASSES - 1 + cell_class * 7 + index).to(tl.float32) * 0.03125
                    known = (code & (ONE_AND_CODE | ((256 - unknown) << 15))).to(tl.float32, bitcast=True)  # 256 + the known bits
                    if KEY:  # a mean a value: nothing of it is worth keeping in a register for each pass
                        inner = tl.fma(mean, share, tl.fma(known, 1 - share, (unknown * 0.5 - 256) * (1 - share)))
                    else:
                        inner = tl.fma(known, 1 - share, mean * share + (unknown * 0.5 - 256) * (1 - share))
                guess = tl.fma(step, inner, low)
                if not KEY:
                    guess += centre
                error = x - rounded(guess, element)
                if not (FULL and DIM == COLS):
                    error = tl.where(mask, error, 0.0)
                now = now + (left[index] + _squares(error, ROWS, COLS),)
            left = now
    of_lane = row[:, None] * LANES + tl.arange(0, LANES)[None, :]
    for index in tl.static_range(PASSES + 1):
        tl.store(parts + index * (ROWS * LANES) + of_lane, left[index])


@triton.jit
def _report(parts, errors, cells, factor, PASSES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Add up the errors that _measure left in parts, and scale them by `factor` to all tokens of the cell."""
    index, lane = tl.arange(0, 8), tl.arange(0, ROWS * (COLS // 8 if COLS > 8 else 1))
    there = (index <= PASSES)[:, None]
    left = tl.sum(tl.load(parts + index[:, None] * (ROWS * (COLS // 8 if COLS > 8 else 1)) + lane[None, :], mask=there, other=0.0), 1)
    tl.store(errors + index * cells, factor * left, mask=index <= PASSES)


@triton.constexpr_function
def scratch_words(tile, rows, cols, span):
    """32-bit words of the scratch of a program: GROUP_ROWS rows of groups, then the parts of the step that needs most."""
    lanes = rows * max(1, cols // 8)
    code = max(_value_words(True, tile, rows, cols), _value_words(False, tile, rows, cols)) + lanes + rows * cols
    return GROUP_ROWS.value * span + max(2 * rows * cols, 2 * span * 4, code, 8 * lanes)


@triton.jit
def encode_cells(
    data, starts, centres, offsets, rules, body, scratch, errors, classes, sums, spreads, cells, tiles, coded_tokens, count, first_tile, tiles_here,
    KEY: tl.constexpr, KINDS: tl.constexpr, HEADS: tl.constexpr, PASSES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    DIM: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr, TOKENS: tl.constexpr, FULL: tl.constexpr, BOUND: tl.constexpr,
    OUTER: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Slots, errors, class, channel sums and spread of `count` cells. All outputs must be 0 before, since a
    verbatim cell writes only its class."""
    element: tl.constexpr = data.dtype.element_ty
    groups = scratch + tl.program_id(0) * scratch_words(TILE, ROWS, COLS, SPAN)
    parts, group = groups + GROUP_ROWS * SPAN, tl.arange(0, SPAN)
    for index in range(tl.program_id(0), count, tl.num_programs(0)):
        cell, strip, of_kind, tile, tokens = place(index, first_tile, tiles_here, tiles, coded_tokens, KEY, KINDS, HEADS, TILE, FULL)
        middles, held = centres + of_kind * DIM, group < (DIM if KEY else tokens)
        if KEY:
            _survey_keys(data, starts, strip, tile, tokens, parts, TILE, BLOCK, DIM, PARTS, ROWS, COLS, FULL)
        else:
            _survey_values(data, starts, strip, tile, tokens, middles, parts, TILE, BLOCK, DIM, PARTS, COLS, SPAN, TOKENS, FULL)
        tl.debug_barrier()
        least, most = _extremes(parts, tokens, element, KEY, DIM, ROWS, COLS, SPAN)
        inside = (tl.abs(least) < BOUND) & (tl.abs(most) < BOUND)
        size = tl.max(tl.where(inside, tl.maximum(tl.abs(least), tl.abs(most)), float("inf")), 0)
        if (size == float("inf")) | ((size > 0) & (size < TINY)):
            tl.store(classes + cell, VERBATIM)
        else:
            _settle(groups, least, most, False, element, KEY, SPAN, OUTER, INNER)
            tl.debug_barrier()
            _code(data, starts, strip, tile, tokens, middles, groups, parts, body, offsets, cell, cells, KEY, PASSES > 3, PASSES, TILE, BLOCK, DIM, PARTS, ROWS, COLS, SPAN, FULL)  # fmt: skip  # noqa: E501
            tl.debug_barrier()
            middle, cell_class = _classify(parts, tokens, rules, KEY, TILE, DIM, ROWS, COLS, SPAN)
            if PASSES <= 3:
                _settle(groups, least, most, cell_class >= NARROW_FROM, element, KEY, SPAN, OUTER, INNER)
                tl.debug_barrier()
                _code(data, starts, strip, tile, tokens, middles, groups, parts, body, offsets, cell, cells, KEY, True, PASSES, TILE, BLOCK, DIM, PARTS, ROWS, COLS, SPAN, FULL)  # fmt: skip  # noqa: E501
                tl.debug_barrier()
                middle, cell_class = _classify(parts, tokens, rules, KEY, TILE, DIM, ROWS, COLS, SPAN)
            tl.store(classes + cell, cell_class.to(tl.uint8))
            _moments(groups, parts, middles, sums + cell.to(tl.int64) * DIM, spreads + cell, tokens, KEY, TILE, DIM, ROWS, COLS, SPAN)
            low, step = tl.load(groups + LOW * SPAN + group), tl.load(groups + STEP * SPAN + group)
            slot = body + tl.multiple_of(tl.load(offsets + cell), 16)
            tl.store(slot.to(tl.pointer_type(element)) + group, low.to(element), mask=held)
            both = (step.to(tl.int32, bitcast=True) >> 15) | (middle >> 4)
            after = slot + (DIM if KEY else tokens) * (element.primitive_bitwidth // 8)
            tl.store(after.to(tl.pointer_type(tl.uint16)) + group, both.to(tl.uint16), mask=held)
            tl.store(groups + MEAN * SPAN + group, middle.to(tl.float32))

            eighth = (tokens + 7) // 8
            part = (strip + tile) % 8
            here = tl.minimum(tokens, (part + 1) * eighth) - part * eighth
            if KEY:
                whole = here <= 0
                factor = tl.full((), tokens, dtype=tl.float32) / here
            else:
                squared = tl.where(held, step * step, 0.0)
                chosen = tl.sum(tl.where((group >= part * eighth) & (group < (part + 1) * eighth), squared, 0.0), 0)
                whole = chosen == 0
                factor = tl.sum(squared, 0) / chosen
            whole = whole | (tokens < MEASURED_WHOLE)
            factor = tl.where(whole, 1.0, factor)
            tl.debug_barrier()
            _measure(data, starts, strip, tile, tokens, middles, groups, parts, rules, cell_class, tl.where(whole, 0, part), tl.where(whole, 8, part + 1), KEY, PASSES, TILE, BLOCK, DIM, PARTS, ROWS, COLS, SPAN, FULL)  # fmt: skip  # noqa: E501
            tl.debug_barrier()
            _report(parts, errors + cell, cells, factor, PASSES, ROWS, COLS)
        tl.debug_barrier()

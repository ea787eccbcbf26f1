"""The quantiser of quantize.py in Triton: gather + quantise + measure + pack, and unpack + dequantise + scatter. One program codes one
cell.

A program reads its tile eighth by eighth, [rows, channels]: once for the extremes, once for the statistics of the codes (twice if the
range is narrowed), and once to measure errors and pack. Only the first read goes to memory: a tile of 128 x 128 bfloat16 is 32 KiB and
stays in the first-level cache. No step holds more than one eighth in registers, so nothing spills at any depth. Each lane collects the
bits of its eight eighths in two words. Values equal the oracle's bit for bit; sums differ in their last digits. On a machine without a GPU
the same code runs in Triton's interpreter (TRITON_INTERPRET=1 before the first import).
"""

from __future__ import annotations

import triton
import triton.language as tl

VERBATIM = tl.constexpr(255)  # as in coder.py
NARROW_FROM = tl.constexpr(3)  # as in quantize.py
MEASURED_WHOLE = tl.constexpr(64)  # as in quantize.py
CLASSES = tl.constexpr(16)
TINY, MIN_STEP, NO_STEP = tl.constexpr(2.0**-48), tl.constexpr(2.0**-64), tl.constexpr(2.0**-72)  # as in quantize.py


@triton.jit
def _place(tiles, kinds, heads, coded_tokens, KEY: tl.constexpr, TILE: tl.constexpr):
    """This program's cell number, its (layer, kind, head) strip, tile and tokens."""
    pid = tl.program_id(0)
    tile = pid % tiles
    strip = (pid // tiles // heads * kinds + (0 if KEY else 1)) * heads + pid // tiles % heads
    return strip * tiles + tile, strip, tile, tl.minimum(TILE, coded_tokens - tile * TILE)


@triton.jit
def _centre(centres, tiles, KEY: tl.constexpr, DIM: tl.constexpr, COLS: tl.constexpr):
    """The centres of this program's channels, [1, channels]; 0 for K."""
    col = tl.arange(0, COLS)
    if KEY:
        return tl.zeros((1, COLS), dtype=tl.float32)
    else:
        return tl.load(centres + tl.program_id(0) // tiles * DIM + col, mask=col < DIM, other=0.0)[None, :]


@triton.jit
def _rows(data, table, strips, strip, tile, tokens, part, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip  # noqa: E501
    """Where eighth `part` of the tile lies in the pool: pointers and mask [rows, channels], and its tokens and their mask [rows]."""
    eighth = (tokens + 7) // 8
    row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
    token = part * eighth + row
    held = (row < eighth) & (token < tokens)
    position = tile * TILE + token
    block = tl.load(table + position // BLOCK, mask=held, other=0)
    start = ((block * strips + strip) // PARTS * BLOCK + position % BLOCK) * (PARTS * DIM) + strip % PARTS * DIM
    return data + start[:, None] + col[None, :], held[:, None] & (col < DIM)[None, :], token, held


@triton.jit
def _rounded(x, element: tl.constexpr):
    """x as float32, rounded to nearest-even in the pool's dtype. For bfloat16 in integers, because the interpreter's own cast truncates."""
    if element == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    else:
        return x.to(element).to(tl.float32)


@triton.jit
def _scale(least, most, narrow, element: tl.constexpr, KEY: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr):
    """Offset, step and inverse of the step of groups with these extremes (quantize.py)."""
    least = least + 0.0
    if not KEY:
        least = _rounded(least - tl.abs(least) * 0.00390625, element)
    extent = most - least
    margin = extent * OUTER - extent * INNER
    low = tl.where(narrow, _rounded(least + margin, element), least)
    wide = tl.where(narrow, extent - 2 * margin, extent) * 0.00390625
    raised = tl.maximum(wide, MIN_STEP).to(tl.int32, bitcast=True)
    up = (((raised + 0x7FFFF) >> 19) << 19).to(tl.float32, bitcast=True)
    return low, tl.where(wide >= NO_STEP, up, 0.0), tl.where(wide >= NO_STEP, tl.div_rn(1.0, up), 0.0)


@triton.jit
def _extremes(y, mask):
    inf: tl.constexpr = float("inf")
    return tl.where(mask, y, inf), tl.where(mask, y, -inf)


@triton.jit
def _token_scale(y, mask, held, narrow, element: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr):
    """_scale of the tokens of V in one eighth, [rows, 1] each."""
    below, above = _extremes(y, mask)
    least, most = tl.where(held, tl.min(below, 1), 0.0), tl.where(held, tl.max(above, 1), 0.0)
    low, step, inverse = _scale(least, most, narrow, element, False, OUTER, INNER)
    return low[:, None], step[:, None], inverse[:, None]


@triton.jit
def _codes(y, mask, low, inverse):
    return tl.where(mask, tl.minimum(tl.maximum((y - low) * inverse, 0.0), 255.0), 0.0).to(tl.int32)


@triton.jit
def _mean(code_sum, members):
    """The group's mean as it is carried, in steps."""
    return (2 * code_sum + members) // (32 * members) * 16 + 8


@triton.jit
def _statistics(
    data, table, strips, strip, tile, tokens, centre, least, most, narrow, rules,
    KEY: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Sums of the codes of each channel (of K), the class of the cell's variance, and the squared steps of V's tokens, summed over all
    tokens and over the eighth that is measured."""
    element: tl.constexpr = data.dtype.element_ty
    sums, squares = tl.zeros((COLS,), dtype=tl.int32), tl.zeros((COLS,), dtype=tl.int32)
    of_tokens = tl.zeros((ROWS,), dtype=tl.int64)
    steps, measured = tl.zeros((ROWS,), dtype=tl.float32), tl.zeros((ROWS,), dtype=tl.float32)
    low, _step, inverse = _scale(least, most, narrow, element, True, OUTER, INNER)
    for part in range(8):
        at, mask, _token, held = _rows(data, table, strips, strip, tile, tokens, part, TILE, BLOCK, DIM, PARTS, ROWS, COLS)
        y = tl.load(at, mask=mask, other=0.0).to(tl.float32) - centre
        if KEY:
            c = _codes(y, mask, low[None, :], inverse[None, :])
            sums += tl.sum(c, 0)
            squares += tl.sum(c * c, 0)
        else:
            low_t, step_t, inverse_t = _token_scale(y, mask, held, narrow, element, OUTER, INNER)
            of_part = tl.sum(step_t, 1) * tl.sum(step_t, 1)
            steps += of_part
            measured += tl.where(part == (strip + tile) % 8, of_part, 0.0)
            c = _codes(y, mask, low_t, inverse_t)
            all = tl.sum(c, 1)
            middle = _mean(all, DIM)
            of_tokens += tl.where(held, tl.sum(c * c, 1) - 2 * middle * all + DIM * middle * middle, 0).to(tl.int64)
    if KEY:
        middle = _mean(sums, tokens).to(tl.int64)
        of_channels = squares.to(tl.int64) - 2 * middle * sums.to(tl.int64) + tokens * middle * middle
        squared = tl.sum(tl.where(tl.arange(0, COLS) < DIM, of_channels, 0))
    else:
        squared = tl.sum(of_tokens)
    variance = squared // (tokens * DIM)
    index = tl.arange(0, CLASSES)
    limits = tl.load(rules + index, mask=index < CLASSES - 1, other=0)
    return sums, tl.sum((variance < limits).to(tl.int32)), tl.sum(steps), tl.sum(measured)


@triton.jit
def _describe(slot, at, held, groups, low, step, middle, data):
    """Store the metadata of groups `at` in a slot."""
    element = data.dtype.element_ty
    tl.store(slot.to(tl.pointer_type(element)) + at, low.to(element), mask=held)
    both = (step.to(tl.int32, bitcast=True) >> 15) | (middle >> 4)
    after = slot + groups * (element.primitive_bitwidth // 8)
    tl.store(after.to(tl.pointer_type(tl.uint16)) + at, both.to(tl.uint16), mask=held)


@triton.jit
def _squared_error(x, mask, codes, low, step, mean, centre, rules, cell_class, element: tl.constexpr, INDEX: tl.constexpr):
    """Squared error of each value after pass INDEX."""
    if INDEX == 0:
        guess = low + step * mean
    else:
        bits: tl.constexpr = INDEX if INDEX < 5 else 2 * INDEX - 4
        unknown: tl.constexpr = 2 ** (8 - bits)
        share = tl.load(rules + CLASSES - 1 + cell_class * 7 + INDEX).to(tl.float32) * 0.03125
        middle = (codes & (256 - unknown)).to(tl.float32) + unknown * 0.5
        guess = low + (middle * (step * (1 - share)) + mean * (step * share))
    off = tl.where(mask, x - _rounded(guess + centre, element), 0.0)
    return off * off


@triton.jit
def encode_cells(
    data, table, centres, offsets, rules, body, errors, classes, sums, spreads, cells, strips, kinds, heads, tiles, coded_tokens,
    KEY: tl.constexpr, PASSES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, BOUND: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Slots, errors, class, channel sums and spread of one cell. All outputs must be 0 before, since a verbatim cell writes only its
    class."""
    cell, strip, tile, tokens = _place(tiles, kinds, heads, coded_tokens, KEY, TILE)
    element: tl.constexpr = data.dtype.element_ty
    centre = _centre(centres, tiles, KEY, DIM, COLS)
    col, row = tl.arange(0, COLS), tl.arange(0, ROWS)
    total, size, beyond = tl.zeros((COLS,), dtype=tl.float32), tl.zeros((COLS,), dtype=tl.float32), 0
    least, most = tl.full((COLS,), float("inf"), dtype=tl.float32), tl.full((COLS,), float("-inf"), dtype=tl.float32)
    for part in range(8):
        at, mask, token, held = _rows(data, table, strips, strip, tile, tokens, part, TILE, BLOCK, DIM, PARTS, ROWS, COLS)
        x = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        beyond = tl.maximum(beyond, tl.max(tl.where(mask & ~(tl.abs(x - centre) < BOUND), 1, 0)))
        size = tl.maximum(size, tl.max(tl.where(mask, tl.abs(x - centre), 0.0), 0))
        total += tl.sum(x, 0)
        below, above = _extremes(x, mask)
        least, most = tl.minimum(least, tl.min(below, 0)), tl.maximum(most, tl.max(above, 0))
    size = tl.max(size, 0)
    if (beyond == 1) | ((size > 0) & (size < TINY)):
        tl.store(classes + cell, VERBATIM)
    else:
        least, most = tl.where(col < DIM, least, 0.0), tl.where(col < DIM, most, 0.0)
        tl.store(sums + cell.to(tl.int64) * DIM + col, total, mask=col < DIM)
        channel_mean = (total / tokens)[None, :]
        narrow = False
        code_sums, cell_class, steps, measured = _statistics(data, table, strips, strip, tile, tokens, centre, least, most, narrow, rules, KEY, TILE, BLOCK, DIM, PARTS, ROWS, COLS, OUTER, INNER)  # fmt: skip  # noqa: E501
        if PASSES <= 3:
            narrow = cell_class >= NARROW_FROM
            code_sums, cell_class, steps, measured = _statistics(data, table, strips, strip, tile, tokens, centre, least, most, narrow, rules, KEY, TILE, BLOCK, DIM, PARTS, ROWS, COLS, OUTER, INNER)  # fmt: skip  # noqa: E501
        tl.store(classes + cell, cell_class.to(tl.uint8))

        slot = body + tl.multiple_of(tl.load(offsets + cell), 16)
        low_c, step_c, inverse_c = _scale(least, most, narrow, element, True, OUTER, INNER)
        middle_c = _mean(code_sums, tokens)
        if KEY:
            _describe(slot, col, col < DIM, DIM, low_c, step_c, middle_c, data)
        chosen = (strip + tile) % 8
        if KEY:
            eighth_of = (tokens + 7) // 8
            steps, measured = tokens.to(tl.float32), (tl.minimum(tokens, (chosen + 1) * eighth_of) - chosen * eighth_of).to(tl.float32)
        whole = (tokens < MEASURED_WHOLE) | (measured == 0)
        planes, pairs = tl.zeros((ROWS, COLS), dtype=tl.int32), tl.zeros((ROWS, COLS), dtype=tl.int32)
        spread = tl.zeros((ROWS, COLS), dtype=tl.float32)
        e0, e1, e2, e3, e4, e5, e6 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for part in range(8):
            at, mask, token, held = _rows(data, table, strips, strip, tile, tokens, part, TILE, BLOCK, DIM, PARTS, ROWS, COLS)
            x = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            if KEY:
                low, step, inverse = low_c[None, :], step_c[None, :], inverse_c[None, :]
                c = _codes(x, mask, low, inverse)
                mean = middle_c[None, :].to(tl.float32)
            else:
                low, step, inverse = _token_scale(x - centre, mask, held, narrow, element, OUTER, INNER)
                c = _codes(x - centre, mask, low, inverse)
                middle = _mean(tl.sum(c, 1), DIM)
                _describe(slot, token[:, None], held[:, None], tokens, low, step, middle[:, None], data)
                mean = middle[:, None].to(tl.float32)
            for index in tl.static_range(1, 5):
                if index <= PASSES:
                    planes |= ((c >> (8 - index)) & 1) << (part + 8 * (index - 1))
            if PASSES >= 5:
                pairs |= ((c >> 2) & 3) << (2 * (part % 4) + 8 * (part // 4))
            if PASSES >= 6:
                pairs |= (c & 3) << (16 + 2 * (part % 4) + 8 * (part // 4))
            off = tl.where(mask, x - channel_mean, 0.0)
            spread += off * off
            if whole | (part == chosen):
                e0 += tl.sum(_squared_error(x, mask, c, low, step, mean, centre, rules, cell_class, element, 0))
                e1 += tl.sum(_squared_error(x, mask, c, low, step, mean, centre, rules, cell_class, element, 1))
                if PASSES >= 2:
                    e2 += tl.sum(_squared_error(x, mask, c, low, step, mean, centre, rules, cell_class, element, 2))
                if PASSES >= 3:
                    e3 += tl.sum(_squared_error(x, mask, c, low, step, mean, centre, rules, cell_class, element, 3))
                if PASSES >= 4:
                    e4 += tl.sum(_squared_error(x, mask, c, low, step, mean, centre, rules, cell_class, element, 4))
                if PASSES >= 5:
                    e5 += tl.sum(_squared_error(x, mask, c, low, step, mean, centre, rules, cell_class, element, 5))
                if PASSES >= 6:
                    e6 += tl.sum(_squared_error(x, mask, c, low, step, mean, centre, rules, cell_class, element, 6))

        factor = tl.where(whole, 1.0, steps / tl.where(whole, 1.0, measured))
        tl.store(spreads + cell, tl.sum(spread))
        tl.store(errors + cell, factor * e0)
        tl.store(errors + cells + cell, factor * e1)
        if PASSES >= 2:
            tl.store(errors + 2 * cells + cell, factor * e2)
        if PASSES >= 3:
            tl.store(errors + 3 * cells + cell, factor * e3)
        if PASSES >= 4:
            tl.store(errors + 4 * cells + cell, factor * e4)
        if PASSES >= 5:
            tl.store(errors + 5 * cells + cell, factor * e5)
        if PASSES >= 6:
            tl.store(errors + 6 * cells + cell, factor * e6)
        eighth = (tokens + 7) // 8
        place = row[:, None] * DIM + col[None, :]
        kept = (row < eighth)[:, None] & (col < DIM)[None, :]
        for index in tl.static_range(1, PASSES + 1):
            slot = body + tl.multiple_of(tl.load(offsets + index * cells + cell), 16)
            if index < 5:
                tl.store(slot + place, ((planes >> (8 * (index - 1))) & 255).to(tl.uint8), mask=kept)
            else:
                tl.store(slot + place, ((pairs >> (16 * (index - 5))) & 255).to(tl.uint8), mask=kept)
                tl.store(slot + eighth * DIM + place, ((pairs >> (16 * (index - 5) + 8)) & 255).to(tl.uint8), mask=kept)


@triton.jit
def _group(slot, at, held, groups, data):
    """low, step and mean (in steps) of groups `at`."""
    element = data.dtype.element_ty
    low = tl.load(slot.to(tl.pointer_type(element)) + at, mask=held, other=0.0).to(tl.float32)
    after = slot + groups * (element.primitive_bitwidth // 8)
    both = tl.load(after.to(tl.pointer_type(tl.uint16)) + at, mask=held, other=0).to(tl.int32)
    return low, ((both >> 4) << 19).to(tl.float32, bitcast=True), ((both & 15) * 16 + 8).to(tl.float32)


@triton.jit
def expand_cells(
    data, table, centres, offsets, rules, wire, presence, classes, cells, strips, kinds, heads, tiles, coded_tokens,
    KEY: tl.constexpr, PASSES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Write the values of one cell into the pool, from as many passes as have arrived."""
    cell, strip, tile, tokens = _place(tiles, kinds, heads, coded_tokens, KEY, TILE)
    cell_class = tl.load(classes + cell).to(tl.int32)
    if cell_class != VERBATIM:
        present = tl.load(presence + cell).to(tl.int32)
        eighth = (tokens + 7) // 8
        row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
        place = row[:, None] * DIM + col[None, :]
        planes, pairs = tl.zeros((ROWS, COLS), dtype=tl.int32), tl.zeros((ROWS, COLS), dtype=tl.int32)
        for index in tl.static_range(1, PASSES + 1):
            there = (row < tl.where(present >= index, eighth, 0))[:, None] & (col < DIM)[None, :]
            slot = wire + tl.multiple_of(tl.load(offsets + index * cells + cell), 16)
            packed = tl.load(slot + place, mask=there, other=0).to(tl.int32)
            if index < 5:
                planes |= packed << (8 * (index - 1))
            else:
                other = tl.load(slot + eighth * DIM + place, mask=there, other=0).to(tl.int32)
                pairs |= (packed | (other << 8)) << (16 * (index - 5))
        bits = present + tl.maximum(present - 4, 0)
        half = tl.where(bits == 8, 0.5, (128 >> tl.minimum(bits, 7)).to(tl.float32))
        share = tl.load(rules + CLASSES - 1 + cell_class * 7 + present).to(tl.float32) * 0.03125
        share = tl.where(present == 0, 1.0, share)
        slot = wire + tl.multiple_of(tl.load(offsets + cell), 16)
        centre = _centre(centres, tiles, KEY, DIM, COLS)
        element: tl.constexpr = data.dtype.element_ty
        low_c, step_c, mean_c = _group(slot, col, (col < DIM) & KEY, DIM, data)
        for part in range(8):
            at, mask, token, held = _rows(data, table, strips, strip, tile, tokens, part, TILE, BLOCK, DIM, PARTS, ROWS, COLS)
            c = tl.zeros((ROWS, COLS), dtype=tl.int32)
            for index in tl.static_range(1, 5):
                if index <= PASSES:
                    c |= ((planes >> (part + 8 * (index - 1))) & 1) << (8 - index)
            if PASSES >= 5:
                c |= ((pairs >> (2 * (part % 4) + 8 * (part // 4))) & 3) << 2
            if PASSES >= 6:
                c |= (pairs >> (16 + 2 * (part % 4) + 8 * (part // 4))) & 3
            if KEY:
                low, step, mean = low_c[None, :], step_c[None, :], mean_c[None, :]
            else:
                low_t, step_t, mean_t = _group(slot, token, held, tokens, data)
                low, step, mean = low_t[:, None], step_t[:, None], mean_t[:, None]
            middle = c.to(tl.float32) + half
            x = low + (middle * (step * (1 - share)) + mean * (step * share))
            tl.store(at, _rounded(x + centre, element).to(element), mask=mask)

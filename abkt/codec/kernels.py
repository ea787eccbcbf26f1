"""The quantiser of quantize.py in Triton: gather + quantise + measure + pack, and unpack + dequantise + scatter; one program a cell.

A program holds its tile as four quarters [rows, channels], so packing is elementwise between them (quantize.pack_pass). Values equal
the oracle's bit for bit; sums differ in their last digits. On a machine without a GPU the same code runs in Triton's interpreter
(TRITON_INTERPRET=1 before the first import).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(tiles, heads, coded_tokens, KEY: tl.constexpr, TILE: tl.constexpr):
    """This program's cell number, its (layer, K|V, head) strip, tile and tokens."""
    pid = tl.program_id(0)
    tile = pid % tiles
    strip = (pid // tiles // heads * 2 + (0 if KEY else 1)) * heads + pid // tiles % heads
    return strip * tiles + tile, strip, tile, tl.minimum(TILE, coded_tokens - tile * TILE)


@triton.jit
def _centre(centres, tiles, KEY: tl.constexpr, DIM: tl.constexpr, COLS: tl.constexpr):
    """The centres of this program's channels, [1, channels]; 0 for K."""
    col = tl.arange(0, COLS)
    return tl.load(centres + tl.program_id(0) // tiles * DIM + col, mask=(col < DIM) & (not KEY), other=0.0)[None, :]


@triton.jit
def _rows(data, table, strips, strip, tile, tokens, part, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip  # noqa: E501
    """Where a quarter of the tile is in the pool: pointers and mask [rows, channels], and its tokens and their mask [rows]."""
    quarter = (tokens + 3) // 4
    row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
    token = part * quarter + row
    held = (row < quarter) & (token < tokens)
    position = tile * TILE + token
    block = tl.load(table + position // BLOCK, mask=held, other=0)
    start = (block * strips + strip) * (BLOCK * DIM) + position % BLOCK * DIM
    return data + start[:, None] + col[None, :], held[:, None] & (col < DIM)[None, :], token, held


@triton.jit
def _rounded(x, element: tl.constexpr):
    """x as float32, rounded to nearest-even in the pool's dtype. In integers for bfloat16: the interpreter's own cast truncates."""
    if element == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    else:
        return x.to(element).to(tl.float32)


@triton.jit
def _scale(low, high, element: tl.constexpr, KEY: tl.constexpr):
    """Offset, step and its inverse of groups with these extremes; see quantize.py."""
    low = low + 0.0
    if not KEY:
        low = _rounded(low - tl.abs(low) * 0.00390625, element)
    wide = (high - low) * 0.00390625
    raised = tl.maximum(wide, 5.421010862427522e-20).to(tl.int32, bitcast=True)
    up = (((raised + 0x7FFFF) >> 19) << 19).to(tl.float32, bitcast=True)
    step = tl.where(wide > 0, up, 0.0)
    return low, step, tl.where(wide > 0, tl.div_rn(1.0, up), 0.0)


@triton.jit
def _wild(x, mask, centre, BOUND: tl.constexpr):
    """1 if a value cannot be coded: NaN, infinite or too large."""
    return tl.max(tl.where(mask & ~(tl.abs(x - centre) < BOUND), 1, 0))


@triton.jit
def _codes(x, mask, low, inverse):
    return tl.where(mask, tl.minimum(tl.maximum((x - low) * inverse, 0.0), 255.0), 0.0).to(tl.int32)


@triton.jit
def _error(x, mask, guess, centre, data):
    """Squared error against what the pool will hold. x: as it was; guess: less the centre."""
    off = tl.where(mask, x - _rounded(guess + centre, data.dtype.element_ty), 0.0)
    return tl.sum(off * off)


@triton.jit
def _error_at(x, mask, codes, low, step, centre, data, INDEX: tl.constexpr):
    """Squared error after pass INDEX."""
    unknown: tl.constexpr = 64 if INDEX == 1 else 16 if INDEX == 2 else 1
    return _error(x, mask, low + step * ((codes & (256 - unknown)).to(tl.float32) + unknown * 0.5), centre, data)


@triton.jit
def _describe(slot, at, held, groups, low, step, code_sum, members, data):
    """Metadata of groups `at` into a slot; returns the middle they have at 0 bits."""
    mean = (2 * code_sum + members) // (32 * members)
    element = data.dtype.element_ty
    tl.store(slot.to(tl.pointer_type(element)) + at, low.to(element), mask=held)
    both = (step.to(tl.int32, bitcast=True) >> 15) | mean
    after = slot + groups * (element.primitive_bitwidth // 8)
    tl.store(after.to(tl.pointer_type(tl.uint16)) + at, both.to(tl.uint16), mask=held)
    return low + step * (mean * 16 + 8).to(tl.float32)


@triton.jit
def encode_cells(
    data, table, centres, offsets, body, errors, exact, sums, spreads, cells, strips, heads, tiles, coded_tokens,
    KEY: tl.constexpr, PASSES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    cell, strip, tile, tokens = _place(tiles, heads, coded_tokens, KEY, TILE)
    p0, m0, t0, h0 = _rows(data, table, strips, strip, tile, tokens, 0, TILE, BLOCK, DIM, ROWS, COLS)
    p1, m1, t1, h1 = _rows(data, table, strips, strip, tile, tokens, 1, TILE, BLOCK, DIM, ROWS, COLS)
    p2, m2, t2, h2 = _rows(data, table, strips, strip, tile, tokens, 2, TILE, BLOCK, DIM, ROWS, COLS)
    p3, m3, t3, h3 = _rows(data, table, strips, strip, tile, tokens, 3, TILE, BLOCK, DIM, ROWS, COLS)
    x0 = tl.load(p0, mask=m0, other=0.0).to(tl.float32)
    x1 = tl.load(p1, mask=m1, other=0.0).to(tl.float32)
    x2 = tl.load(p2, mask=m2, other=0.0).to(tl.float32)
    x3 = tl.load(p3, mask=m3, other=0.0).to(tl.float32)

    centre = _centre(centres, tiles, KEY, DIM, COLS)
    wild = tl.maximum(tl.maximum(_wild(x0, m0, centre, BOUND), _wild(x1, m1, centre, BOUND)), tl.maximum(_wild(x2, m2, centre, BOUND), _wild(x3, m3, centre, BOUND)))  # fmt: skip  # noqa: E501
    tl.store(exact + cell, wild.to(tl.uint8))
    tame = wild == 0
    centre = tl.where(tame, centre, 0.0)  # with it 0 everywhere, every slot and error of an exact cell is 0
    x0, x1, x2, x3 = tl.where(tame, x0, 0.0), tl.where(tame, x1, 0.0), tl.where(tame, x2, 0.0), tl.where(tame, x3, 0.0)

    col = tl.arange(0, COLS)
    total = tl.sum(x0, 0) + tl.sum(x1, 0) + tl.sum(x2, 0) + tl.sum(x3, 0)
    mean = (total / tokens)[None, :]
    tl.store(sums + cell.to(tl.int64) * DIM + col, total, mask=col < DIM)
    d0, d1, d2, d3 = tl.where(m0, x0 - mean, 0.0), tl.where(m1, x1 - mean, 0.0), tl.where(m2, x2 - mean, 0.0), tl.where(m3, x3 - mean, 0.0)
    tl.store(spreads + cell, tl.sum(d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3))

    slot = body + tl.multiple_of(tl.load(offsets + cell), 16)
    inf: tl.constexpr = float("inf")
    y0, y1, y2, y3 = x0 - centre, x1 - centre, x2 - centre, x3 - centre
    l0, l1, l2, l3 = tl.where(m0, y0, inf), tl.where(m1, y1, inf), tl.where(m2, y2, inf), tl.where(m3, y3, inf)
    g0, g1, g2, g3 = tl.where(m0, y0, -inf), tl.where(m1, y1, -inf), tl.where(m2, y2, -inf), tl.where(m3, y3, -inf)
    element: tl.constexpr = data.dtype.element_ty
    if KEY:
        least = tl.min(tl.minimum(tl.minimum(l0, l1), tl.minimum(l2, l3)), 0)
        most = tl.max(tl.maximum(tl.maximum(g0, g1), tl.maximum(g2, g3)), 0)
        low, step, inverse = _scale(tl.where(col < DIM, least, 0.0), tl.where(col < DIM, most, 0.0), element, KEY)
        c0, c1 = _codes(y0, m0, low[None, :], inverse[None, :]), _codes(y1, m1, low[None, :], inverse[None, :])
        c2, c3 = _codes(y2, m2, low[None, :], inverse[None, :]), _codes(y3, m3, low[None, :], inverse[None, :])
        guess = _describe(slot, col, col < DIM, DIM, low, step, tl.sum(c0 + c1 + c2 + c3, 0), tokens, data)
        e0, e1, e2, e3 = guess[None, :], guess[None, :], guess[None, :], guess[None, :]
        low0, low1, low2, low3 = low[None, :], low[None, :], low[None, :], low[None, :]
        s0, s1, s2, s3 = step[None, :], step[None, :], step[None, :], step[None, :]
    else:
        a0, b0, i0 = _scale(tl.where(h0, tl.min(l0, 1), 0.0), tl.where(h0, tl.max(g0, 1), 0.0), element, KEY)
        a1, b1, i1 = _scale(tl.where(h1, tl.min(l1, 1), 0.0), tl.where(h1, tl.max(g1, 1), 0.0), element, KEY)
        a2, b2, i2 = _scale(tl.where(h2, tl.min(l2, 1), 0.0), tl.where(h2, tl.max(g2, 1), 0.0), element, KEY)
        a3, b3, i3 = _scale(tl.where(h3, tl.min(l3, 1), 0.0), tl.where(h3, tl.max(g3, 1), 0.0), element, KEY)
        c0, c1 = _codes(y0, m0, a0[:, None], i0[:, None]), _codes(y1, m1, a1[:, None], i1[:, None])
        c2, c3 = _codes(y2, m2, a2[:, None], i2[:, None]), _codes(y3, m3, a3[:, None], i3[:, None])
        e0 = _describe(slot, t0, h0, tokens, a0, b0, tl.sum(c0, 1), DIM, data)[:, None]
        e1 = _describe(slot, t1, h1, tokens, a1, b1, tl.sum(c1, 1), DIM, data)[:, None]
        e2 = _describe(slot, t2, h2, tokens, a2, b2, tl.sum(c2, 1), DIM, data)[:, None]
        e3 = _describe(slot, t3, h3, tokens, a3, b3, tl.sum(c3, 1), DIM, data)[:, None]
        low0, low1, low2, low3 = a0[:, None], a1[:, None], a2[:, None], a3[:, None]
        s0, s1, s2, s3 = b0[:, None], b1[:, None], b2[:, None], b3[:, None]

    left = _error(x0, m0, e0, centre, data) + _error(x1, m1, e1, centre, data)
    left += _error(x2, m2, e2, centre, data) + _error(x3, m3, e3, centre, data)
    tl.store(errors + cell, left)
    quarter = (tokens + 3) // 4
    row = tl.arange(0, ROWS)
    place = row[:, None] * DIM + col[None, :]
    kept = (row < quarter)[:, None] & (col < DIM)[None, :]
    for index in tl.static_range(1, PASSES + 1):
        left = _error_at(x0, m0, c0, low0, s0, centre, data, index) + _error_at(x1, m1, c1, low1, s1, centre, data, index)
        left += _error_at(x2, m2, c2, low2, s2, centre, data, index) + _error_at(x3, m3, c3, low3, s3, centre, data, index)
        tl.store(errors + index * cells + cell, left)
        slot = body + tl.multiple_of(tl.load(offsets + index * cells + cell), 16)
        if index < 3:
            tl.store(slot + place, _pair(c0, index, 0) | _pair(c1, index, 2) | _pair(c2, index, 4) | _pair(c3, index, 6), mask=kept)
        else:
            tl.store(slot + place, ((c0 & 15) | ((c2 & 15) << 4)).to(tl.uint8), mask=kept)
            tl.store(slot + quarter * DIM + place, ((c1 & 15) | ((c3 & 15) << 4)).to(tl.uint8), mask=kept)


@triton.jit
def _pair(codes, INDEX: tl.constexpr, AT: tl.constexpr):
    """The two bits of pass 1 or 2, moved to bit AT of a byte."""
    return (((codes >> (8 - 2 * INDEX)) & 3) << AT).to(tl.uint8)


@triton.jit
def _group(slot, at, held, groups, data):
    """low, step and 4-bit mean of groups `at`."""
    element = data.dtype.element_ty
    low = tl.load(slot.to(tl.pointer_type(element)) + at, mask=held, other=0.0).to(tl.float32)
    after = slot + groups * (element.primitive_bitwidth // 8)
    both = tl.load(after.to(tl.pointer_type(tl.uint16)) + at, mask=held, other=0).to(tl.int32)
    return low, ((both >> 4) << 19).to(tl.float32, bitcast=True), both & 15


@triton.jit
def _restore(pointers, mask, codes, low, step, mean, centre, present, half):
    code = tl.where(present == 0, mean * 16, codes).to(tl.float32)
    element = pointers.dtype.element_ty
    tl.store(pointers, _rounded(low + step * (code + half) + centre, element).to(element), mask=mask)


@triton.jit
def expand_cells(
    data, table, centres, offsets, wire, presence, cells, strips, heads, tiles, coded_tokens,
    KEY: tl.constexpr, PASSES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    cell, strip, tile, tokens = _place(tiles, heads, coded_tokens, KEY, TILE)
    present = tl.load(presence + cell).to(tl.int32)
    if present >= 0:
        quarter = (tokens + 3) // 4
        row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
        place = row[:, None] * DIM + col[None, :]
        c0 = tl.zeros((ROWS, COLS), dtype=tl.int32)
        c1, c2, c3 = c0, c0, c0
        for index in tl.static_range(1, PASSES + 1):
            there = (row < tl.where(present >= index, quarter, 0))[:, None] & (col < DIM)[None, :]
            slot = wire + tl.multiple_of(tl.load(offsets + index * cells + cell), 16)
            packed = tl.load(slot + place, mask=there, other=0).to(tl.int32)
            if index < 3:
                c0, c1 = c0 | ((packed & 3) << (8 - 2 * index)), c1 | (((packed >> 2) & 3) << (8 - 2 * index))
                c2, c3 = c2 | (((packed >> 4) & 3) << (8 - 2 * index)), c3 | (((packed >> 6) & 3) << (8 - 2 * index))
            else:
                other = tl.load(slot + quarter * DIM + place, mask=there, other=0).to(tl.int32)
                c0, c1, c2, c3 = c0 | (packed & 15), c1 | (other & 15), c2 | (packed >> 4), c3 | (other >> 4)
        half = tl.where(present == 0, 8.0, tl.where(present == 1, 32.0, tl.where(present == 2, 8.0, 0.5)))
        slot = wire + tl.multiple_of(tl.load(offsets + cell), 16)
        p0, m0, t0, h0 = _rows(data, table, strips, strip, tile, tokens, 0, TILE, BLOCK, DIM, ROWS, COLS)
        p1, m1, t1, h1 = _rows(data, table, strips, strip, tile, tokens, 1, TILE, BLOCK, DIM, ROWS, COLS)
        p2, m2, t2, h2 = _rows(data, table, strips, strip, tile, tokens, 2, TILE, BLOCK, DIM, ROWS, COLS)
        p3, m3, t3, h3 = _rows(data, table, strips, strip, tile, tokens, 3, TILE, BLOCK, DIM, ROWS, COLS)
        centre = _centre(centres, tiles, KEY, DIM, COLS)
        if KEY:
            low, step, mean = _group(slot, col, col < DIM, DIM, data)
            _restore(p0, m0, c0, low[None, :], step[None, :], mean[None, :], centre, present, half)
            _restore(p1, m1, c1, low[None, :], step[None, :], mean[None, :], centre, present, half)
            _restore(p2, m2, c2, low[None, :], step[None, :], mean[None, :], centre, present, half)
            _restore(p3, m3, c3, low[None, :], step[None, :], mean[None, :], centre, present, half)
        else:
            a0, s0, n0 = _group(slot, t0, h0, tokens, data)
            a1, s1, n1 = _group(slot, t1, h1, tokens, data)
            a2, s2, n2 = _group(slot, t2, h2, tokens, data)
            a3, s3, n3 = _group(slot, t3, h3, tokens, data)
            _restore(p0, m0, c0, a0[:, None], s0[:, None], n0[:, None], centre, present, half)
            _restore(p1, m1, c1, a1[:, None], s1[:, None], n1[:, None], centre, present, half)
            _restore(p2, m2, c2, a2[:, None], s2[:, None], n2[:, None], centre, present, half)
            _restore(p3, m3, c3, a3[:, None], s3[:, None], n3[:, None], centre, present, half)

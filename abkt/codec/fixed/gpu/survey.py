"""The first steps of an encode: the extremes of every group of a cell, and from them offsets and steps."""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.fixed.gpu.instructions import greatest_of_three, least_of, most_of, widened
from abkt.codec.fixed.gpu.matrix import eighths_of
from abkt.codec.fixed.gpu.tile import INVERSE, LOW, STEP, even_part, rows_of, scale_of


@triton.jit
def _least(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _most(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _greater(a, b):
    return tl.maximum(a, b)


@triton.jit
def _greatest(x, TOKENS: tl.constexpr, CHUNK: tl.constexpr):
    """The greatest integer of each lane's 32 of a token. x: [4, TOKENS, CHUNK], of which a lane holds eight in a row, four times."""
    even, odd = tl.split(tl.reshape(tl.permute(x, (1, 2, 0)), (TOKENS, CHUNK, 2, 2)))
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    least: tl.constexpr = 0 if x.dtype == tl.uint32 else -(2**31)
    found = tl.full((TOKENS, CHUNK // 8), least, dtype=x.dtype)
    for c in tl.static_range(4):
        e = eighths_of((c0, c1, c2, c3)[c], TOKENS, CHUNK)
        for index in tl.static_range(0, 8, 2):
            found = greatest_of_three(found, e[index], e[index + 1])
    return found


@triton.jit
def survey_keys(
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


@triton.constexpr_function
def compares_bits(dim, cols, full):
    """Whether V is surveyed by the bits of its values first."""
    return full and dim == cols == 128


@triton.jit
def survey_values(
    data, starts, strip, tile, tokens, centres, parts,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr,
    TOKENS: tl.constexpr, FULL: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The least and greatest value of each token, less the centre of its channel, into parts [2, SPAN, lanes of a token]. A row is read in
    chunks, so that few lanes share a token.

    BITS: compare the bits of the values as integers, signed for the greatest and unsigned for the least, since a GPU compares three
    integers at once but only two numbers. The greatest is right if a value is not negative, and the least if one is (`extremes`).
    """
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
        to = parts + token.to(tl.int32)[:, None] * LANES + tl.arange(0, LANES)[None, :]
        if BITS:
            low_bits, high_bits = below.to(tl.uint32, bitcast=True), above.to(tl.int32, bitcast=True)
            low_bits, high_bits = _greatest(low_bits, TOKENS, CHUNK), _greatest(high_bits, TOKENS, CHUNK)
            tl.store(to, low_bits.to(tl.float32, bitcast=True), mask=held[:, None])
            tl.store(to + SPAN * LANES, high_bits.to(tl.float32, bitcast=True), mask=held[:, None])
        else:
            below, above = tl.reduce(tl.reshape(below, shape), 3, _least), tl.reduce(tl.reshape(above, shape), 3, _most)
            tl.store(to, tl.reduce(below, 0, _least), mask=held[:, None])
            tl.store(to + SPAN * LANES, tl.reduce(above, 0, _most), mask=held[:, None])


@triton.jit
def extremes(parts, tokens, element: tl.constexpr, KEY: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr, BITS: tl.constexpr):  # fmt: skip  # noqa: E501
    """The extremes of every group from what a survey left in parts; 0 for groups that are not there. BITS: as in survey_values; groups
    whose extremes are then not to be trusted have NaN."""
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
        least, most = tl.load(at, mask=held, other=0.0), tl.load(at + SPAN * LANES, mask=held, other=0.0)
        if BITS:
            low_bits = tl.reduce(least.to(tl.uint32, bitcast=True), 1, _greater).to(tl.int32, bitcast=True)
            high_bits = tl.reduce(most.to(tl.int32, bitcast=True), 1, _greater)
            crosses = ((low_bits < 0) & (high_bits >= 0)) | (group >= tokens)
            least = tl.where(crosses, low_bits.to(tl.float32, bitcast=True), float("nan"))
            most = high_bits.to(tl.float32, bitcast=True)
        else:
            least, most = tl.reduce(least, 1, _least), tl.reduce(most, 1, _most)
    return least, most


@triton.jit
def settle(groups, least, most, narrow, element: tl.constexpr, KEY: tl.constexpr, SPAN: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr):  # fmt: skip  # noqa: E501
    """Offset, step and inverse of every group, into groups."""
    group = tl.arange(0, SPAN)
    low, step, inverse = scale_of(least, most, narrow, element, KEY, OUTER, INNER)
    tl.store(groups + LOW * SPAN + group, low)
    tl.store(groups + STEP * SPAN + group, step)
    tl.store(groups + INVERSE * SPAN + group, inverse)

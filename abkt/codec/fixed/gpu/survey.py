"""The first steps of an encode: the extremes of every group of a cell, and from them offsets and steps."""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.fixed.gpu.instructions import least_of, most_of, widened
from abkt.codec.fixed.gpu.tile import INVERSE, LOW, STEP, even_part, rows_of, scale_of


@triton.jit
def _least(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _most(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


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


@triton.jit
def survey_values(
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
def extremes(parts, tokens, element: tl.constexpr, KEY: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr):  # fmt: skip  # noqa: E501
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
def settle(groups, least, most, narrow, element: tl.constexpr, KEY: tl.constexpr, SPAN: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr):  # fmt: skip  # noqa: E501
    """Offset, step and inverse of every group, into groups."""
    group = tl.arange(0, SPAN)
    low, step, inverse = scale_of(least, most, narrow, element, KEY, OUTER, INNER)
    tl.store(groups + LOW * SPAN + group, low)
    tl.store(groups + STEP * SPAN + group, step)
    tl.store(groups + INVERSE * SPAN + group, inverse)

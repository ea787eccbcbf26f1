"""The last step of an encode: the squared errors of some tokens of a cell after each pass."""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.fixed.gpu.instructions import code_of, rounded, widened
from abkt.codec.fixed.gpu.tile import CLASSES, INVERSE, LOW, MEAN, STEP, rows_of, squares_of

ONE_AND_CODE = tl.constexpr(0x43800000)  # 256 as a float32, whose upper eight bits of mantissa are free for a code


@triton.constexpr_function
def unknown_of(index):
    """The codes between which pass `index` does not tell."""
    return 2 ** (8 - (index if index < 5 else 2 * index - 4))


@triton.jit
def measure(
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
            bits = (code_of((x - centre - low) * inverse) << 15) | ONE_AND_CODE
            now = ()
            for index in tl.static_range(PASSES + 1):
                unknown = unknown_of(index)
                if index == 0:
                    inner = mean
                else:
                    share = tl.load(rules + CLASSES - 1 + cell_class * 7 + index).to(tl.float32) * 0.03125
                    known = (bits & (ONE_AND_CODE | ((256 - unknown) << 15))).to(tl.float32, bitcast=True)  # 256 + the known bits
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
                now = now + (left[index] + squares_of(error, ROWS, COLS),)
            left = now
    of_lane = row[:, None] * LANES + tl.arange(0, LANES)[None, :]
    for index in tl.static_range(PASSES + 1):
        tl.store(parts + index * (ROWS * LANES) + of_lane, left[index])


@triton.jit
def report(parts, errors, cells, factor, PASSES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Add up the errors that _measure left in parts, and scale them by `factor` to all tokens of the cell."""
    index, lane = tl.arange(0, 8), tl.arange(0, ROWS * (COLS // 8 if COLS > 8 else 1))
    there = (index <= PASSES)[:, None]
    left = tl.sum(tl.load(parts + index[:, None] * (ROWS * (COLS // 8 if COLS > 8 else 1)) + lane[None, :], mask=there, other=0.0), 1)
    tl.store(errors + index * cells, factor * left, mask=index <= PASSES)

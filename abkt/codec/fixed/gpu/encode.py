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

from abkt.codec.fixed.gpu.code import classify, code, moments, value_words
from abkt.codec.fixed.gpu.measure import measure, report
from abkt.codec.fixed.gpu.survey import extremes, settle, survey_keys, survey_values
from abkt.codec.fixed.gpu.tile import GROUP_ROWS, LOW, MEAN, STEP, place

VERBATIM = tl.constexpr(255)  # as in coder.py
NARROW_FROM = tl.constexpr(3)  # as in quantize.py
MEASURED_WHOLE = tl.constexpr(64)  # as in quantize.py
TINY = tl.constexpr(2.0**-48)  # as in quantize.py


@triton.constexpr_function
def scratch_words(tile, rows, cols, span):
    """32-bit words of the scratch of a program: GROUP_ROWS rows of groups, then the parts of the step that needs most."""
    lanes = rows * max(1, cols // 8)
    code = max(value_words(True, tile, rows, cols), value_words(False, tile, rows, cols)) + lanes + rows * cols
    return GROUP_ROWS.value * span + max(2 * rows * cols, 2 * span * 4, code, 8 * lanes)


@triton.jit
def encode_cells(
    data, starts, centres, offsets, rules, body, scratch, errors, classes, sums, spreads, cells, tiles, coded_tokens, count, first_tile,
    tiles_here,
    KEY: tl.constexpr, KINDS: tl.constexpr, HEADS: tl.constexpr, PASSES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    DIM: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr, TOKENS: tl.constexpr,
    FULL: tl.constexpr, BOUND: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr,
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
            survey_keys(data, starts, strip, tile, tokens, parts, TILE, BLOCK, DIM, PARTS, ROWS, COLS, FULL)
        else:
            survey_values(data, starts, strip, tile, tokens, middles, parts, TILE, BLOCK, DIM, PARTS, COLS, SPAN, TOKENS, FULL)
        tl.debug_barrier()
        least, most = extremes(parts, tokens, element, KEY, DIM, ROWS, COLS, SPAN)
        inside = (tl.abs(least) < BOUND) & (tl.abs(most) < BOUND)
        size = tl.max(tl.where(inside, tl.maximum(tl.abs(least), tl.abs(most)), float("inf")), 0)
        if (size == float("inf")) | ((size > 0) & (size < TINY)):
            tl.store(classes + cell, VERBATIM)
        else:
            settle(groups, least, most, False, element, KEY, SPAN, OUTER, INNER)
            tl.debug_barrier()
            code(data, starts, strip, tile, tokens, middles, groups, parts, body, offsets, cell, cells, KEY, PASSES > 3, PASSES, TILE, BLOCK, DIM, PARTS, ROWS, COLS, SPAN, FULL)  # fmt: skip  # noqa: E501
            tl.debug_barrier()
            middle, cell_class = classify(parts, tokens, rules, KEY, TILE, DIM, ROWS, COLS, SPAN)
            if PASSES <= 3:
                settle(groups, least, most, cell_class >= NARROW_FROM, element, KEY, SPAN, OUTER, INNER)
                tl.debug_barrier()
                code(data, starts, strip, tile, tokens, middles, groups, parts, body, offsets, cell, cells, KEY, True, PASSES, TILE, BLOCK, DIM, PARTS, ROWS, COLS, SPAN, FULL)  # fmt: skip  # noqa: E501
                tl.debug_barrier()
                middle, cell_class = classify(parts, tokens, rules, KEY, TILE, DIM, ROWS, COLS, SPAN)
            tl.store(classes + cell, cell_class.to(tl.uint8))
            moments(groups, parts, middles, sums + cell.to(tl.int64) * DIM, spreads + cell, tokens, KEY, TILE, DIM, ROWS, COLS, SPAN)
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
            measure(data, starts, strip, tile, tokens, middles, groups, parts, rules, cell_class, tl.where(whole, 0, part), tl.where(whole, 8, part + 1), KEY, PASSES, TILE, BLOCK, DIM, PARTS, ROWS, COLS, SPAN, FULL)  # fmt: skip  # noqa: E501
            tl.debug_barrier()
            report(parts, errors + cell, cells, factor, PASSES, ROWS, COLS)
        tl.debug_barrier()

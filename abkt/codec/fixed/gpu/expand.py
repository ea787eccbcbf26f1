"""The inverse of encode.py: unpack, dequantise and scatter. One program expands one cell, from as many passes as have arrived."""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.fixed.gpu.instructions import byte_as_float, channels_of, narrowed
from abkt.codec.fixed.gpu.planes import words_from
from abkt.codec.fixed.gpu.tile import place, rows_of

VERBATIM = tl.constexpr(255)  # as in coder.py
CLASSES = tl.constexpr(16)


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
    data, starts, centres, offsets, rules, wire, presence, classes, cells, tiles, coded_tokens, first_tile, tiles_here,
    KEY: tl.constexpr, KINDS: tl.constexpr, HEADS: tl.constexpr, PASSES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    DIM: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Write the values of one cell into the pool."""
    number = tl.program_id(0)
    cell, strip, of_kind, tile, tokens = place(number, first_tile, tiles_here, tiles, coded_tokens, KEY, KINDS, HEADS, TILE, FULL)
    element: tl.constexpr = data.dtype.element_ty
    cell_class = tl.load(classes + cell).to(tl.int32)
    if cell_class < VERBATIM:
        present = tl.load(presence + cell).to(tl.int32)
        eighth = TILE // 8 if FULL else (tokens + 7) // 8
        row, col, word = tl.arange(0, ROWS), tl.arange(0, COLS), tl.arange(0, COLS // 4)
        bits = present + tl.maximum(present - 4, 0)
        half = tl.where(bits == 8, 0.5, (128 >> tl.minimum(bits, 7)).to(tl.float32))
        share = tl.load(rules + CLASSES - 1 + cell_class * 7 + present).to(tl.float32) * 0.03125
        share = tl.where(present == 0, 1.0, share)
        own, known = 1 - share, (half - 32768) * (1 - share)  # bytes arrive as 2**15 + byte; all sums below are exact
        slot = body_at(wire, offsets, cell)
        centre = tl.zeros((1, COLS), dtype=tl.float32)
        if KEY:
            low, step, mean = _group(slot, col, col < DIM, DIM, data)
            low, step, base = low[None, :], step[None, :], (mean * share + known)[None, :]
        else:
            centre = tl.load(centres + of_kind * DIM + col, mask=col < DIM, other=0.0)[None, :]
        for first in range(0, eighth, ROWS):
            at_word = (first + row)[:, None] * (DIM // 4) + word[None, :]
            inside = (first + row < eighth)[:, None] & (word < DIM // 4)[None, :]
            packed = ()
            for index in tl.static_range(1, 7):
                if index <= PASSES:
                    there = inside & (present >= index)
                    from_slot = body_at(wire, offsets + index * cells, cell).to(tl.pointer_type(tl.int32))
                    packed = packed + (tl.load(from_slot + at_word, mask=there, other=0),)
                    if index >= 5:
                        packed = packed + (tl.load(from_slot + eighth * (DIM // 4) + at_word, mask=there, other=0),)
                else:
                    packed = packed + (tl.zeros((ROWS, COLS // 4), dtype=tl.int32),)
                    if index >= 5:
                        packed = packed + (tl.zeros((ROWS, COLS // 4), dtype=tl.int32),)
            words = words_from(packed[0], packed[1], packed[2], packed[3], packed[4], packed[5], packed[6], packed[7])
            for part in tl.static_range(8):
                at, mask, token, held = rows_of(data, starts, strip, tile, tokens, part, first, TILE, BLOCK, DIM, PARTS, ROWS, COLS, FULL)  # fmt: skip  # noqa: E501
                if not KEY:
                    low, step, mean = _group(slot, token, held, tokens, data)
                    low, step, base = low[:, None], step[:, None], (mean * share + known)[:, None]
                w = words[part]
                code = channels_of(byte_as_float(w, 0), byte_as_float(w, 1), byte_as_float(w, 2), byte_as_float(w, 3), ROWS, COLS)
                x = tl.fma(step, tl.fma(code, own, base), low)
                if not KEY:
                    x += centre
                if FULL and DIM == COLS:
                    tl.store(at, narrowed(x, element))
                else:
                    tl.store(at, narrowed(x, element), mask=mask)


@triton.jit
def body_at(body, offsets, cell):
    """Where a slot of a cell begins."""
    return body + tl.multiple_of(tl.load(offsets + cell), 16)

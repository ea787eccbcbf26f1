"""What the kernels of the fixed coder share: where a cell lies in the pool, and the arithmetic of its groups (quantize.py).

The scratch of an encode begins with GROUP_ROWS rows of SPAN groups each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.fixed.gpu.instructions import rounded

CLASSES = tl.constexpr(16)  # as in quantize.py
MIN_STEP, NO_STEP = tl.constexpr(2.0**-64), tl.constexpr(2.0**-72)  # as in quantize.py
LOW, STEP, INVERSE, MEAN, GROUP_ROWS = (tl.constexpr(i) for i in range(5))  # rows of groups in the scratch of a program


@triton.jit
def place(
    index, first_tile, tiles_here, tiles, coded_tokens,
    KEY: tl.constexpr, KINDS: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """The number of the index-th cell of a launch over `tiles_here` tiles from first_tile, its (layer, kind, head) strip, its number among
    the strips of its kind, its tile and its tokens."""
    of_kind, tile = index // tiles_here, first_tile + index % tiles_here
    strip = (of_kind // HEADS * KINDS + (0 if KEY else 1)) * HEADS + of_kind % HEADS
    tokens = TILE if FULL else tl.minimum(TILE, coded_tokens - tile * TILE)
    return strip * tiles + tile, strip, of_kind, tile, tokens


@triton.constexpr_function
def even_part(number):
    """The greatest power of two that divides a number, at most 128."""
    return min(128, number & -number)


@triton.jit
def rows_of(
    data, starts, strip, tile, tokens, part, first,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """Rows first .. first + ROWS of eighth `part` in the pool: pointers and mask [ROWS, COLS]; their tokens and mask [ROWS].

    starts: where each coded block begins in the pool. Of a full tile all rows lie in one block, so one start serves them all.
    """
    row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
    head_dim: tl.constexpr = PARTS * DIM
    in_block = strip // PARTS * (BLOCK * head_dim) + strip % PARTS * DIM
    eighth = TILE // 8 if FULL else (tokens + 7) // 8
    token = part * eighth + first + row
    if FULL:
        in_tile = (part * eighth + first).to(tl.uint32)
        start = tl.multiple_of(tl.load(starts + tile * (TILE // BLOCK) + in_tile // BLOCK), even_part(BLOCK * head_dim))
        at = data + in_block + start
        held = row < ROWS
        return at + ((in_tile % BLOCK + row) * head_dim)[:, None] + col[None, :], (col < DIM)[None, :] & held[:, None], token, held
    else:
        held = (first + row < eighth) & (token < tokens)
        start = tl.load(starts + tile * (TILE // BLOCK) + token // BLOCK, mask=held, other=0)
        start = tl.multiple_of(start, even_part(BLOCK * head_dim)) + in_block + token % BLOCK * head_dim
        return data + start[:, None] + col[None, :], held[:, None] & (col < DIM)[None, :], token, held


@triton.jit
def scale_of(least, most, narrow, element: tl.constexpr, KEY: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr):
    """Offset, step and inverse of the step of groups with these extremes."""
    least = least + 0.0
    if not KEY:
        least = rounded(least - tl.abs(least) * 0.00390625, element)
    extent = most - least
    margin = extent * OUTER - extent * INNER
    low = tl.where(narrow, rounded(least + margin, element), least)
    wide = tl.where(narrow, extent - 2 * margin, extent) * 0.00390625
    raised = tl.maximum(wide, MIN_STEP).to(tl.int32, bitcast=True)
    up = (((raised + 0x7FFFF) >> 19) << 19).to(tl.float32, bitcast=True)
    return low, tl.where(wide >= NO_STEP, up, 0.0), tl.where(wide >= NO_STEP, tl.div_rn(1.0, up), 0.0)


@triton.jit
def slot_of(body, offsets, cell):
    """Where a slot of a cell begins."""
    return (body + tl.multiple_of(tl.load(offsets + cell), 16)).to(tl.pointer_type(tl.int32))


@triton.jit
def squares_of(off, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Sums of squares over up to eight neighbouring channels, which lie in one lane."""
    NEAR: tl.constexpr = 8 if COLS > 8 else COLS
    return tl.sum(tl.reshape(off * off, (ROWS, COLS // NEAR, NEAR)), 2)

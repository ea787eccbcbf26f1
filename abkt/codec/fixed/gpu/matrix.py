"""Sums by matrix instructions (mma.m16n8k8 of bfloat16, summed in float32): of squares, and of values, two of each an instruction.

Lane 4 q + t of a warp holds a word of two values, which the instruction takes as row q, columns 2 t and 2 t + 1, of an 8 x 8 matrix W. Its
other operand stacks W on the unit matrix, so the result stacks W W' on W'. The diagonal of W W' holds the sums of the squares of W's rows.
W' holds each value at another lane. Added up over the words of a loop, four registers a lane hold both kinds of sums.

What is summed is rounded to bfloat16 first, 9 bits of it are right. The rounding is to nearest, so sums over hundreds of values keep three
to four digits. PTX ISA, "Matrix Fragments for mma.m16n8k8", says which lane holds what. Not run on a GPU, and not in the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.fixed.gpu.instructions import INTERPRETED, quarters_of


@triton.constexpr_function
def fits_matrices(element, rows, cols):
    """Whether every lane of the program holds eight neighbouring values of [rows, cols], and their dtype is the instruction's."""
    return element == tl.bfloat16 and rows * cols in (256, 512) and cols >= 8 and not INTERPRETED.value


@triton.jit
def eighths_of(x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS] as eight tensors [ROWS, COLS / 8], each of every eighth channel. They lie in the same registers."""
    q0, q1, q2, q3 = quarters_of(x, ROWS, COLS)
    x0, x4 = tl.split(tl.reshape(q0, (ROWS, COLS // 8, 2)))
    x1, x5 = tl.split(tl.reshape(q1, (ROWS, COLS // 8, 2)))
    x2, x6 = tl.split(tl.reshape(q2, (ROWS, COLS // 8, 2)))
    x3, x7 = tl.split(tl.reshape(q3, (ROWS, COLS // 8, 2)))
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def pair_of(low, high):
    """Two float32, rounded to bfloat16, as a word."""
    return tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def difference_of(word, low, high):
    """A word less two float32, which are rounded before."""
    return tl.inline_asm_elementwise(
        "{ .reg .b32 g; cvt.rn.bf16x2.f32 g, $3, $2; fma.rn.bf16x2 $0, g, $4, $1; }",
        "=r,r,f,f,r", [word, low, high, tl.full(word.shape, -0x407F4080, tl.int32)], dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def unit_of(like):
    """A lane's word of the unit matrix. like: a tensor of one element a lane."""
    return tl.inline_asm_elementwise(
        """{
        .reg .u32 lane, q, t; .reg .pred first, second;
        mov.u32 lane, %laneid; shr.u32 q, lane, 2; and.b32 t, lane, 3; shl.b32 t, t, 1;
        setp.eq.u32 first, q, t; add.u32 t, t, 1; setp.eq.u32 second, q, t;
        selp.b32 $0, 0x3F80, 0, first; selp.b32 $0, 0x3F800000, $0, second;
        }""",
        "=r,r", [like], dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def added(sums, word, unit):
    """sums: four float32 a lane, to which W W' and W' are added."""
    return tl.inline_asm_elementwise(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {$0, $1, $2, $3}, {$4, $5}, {$4}, {$6, $7, $8, $9};",
        "=f,=f,=f,=f,r,r,f,f,f,f", [word, unit, sums[0], sums[1], sums[2], sums[3]],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def none_yet(ROWS: tl.constexpr, LANES: tl.constexpr):
    zero = tl.zeros((ROWS, LANES), dtype=tl.float32)
    return zero, zero, zero, zero


@triton.jit
def squared(sums, unit):
    """The sum of the squares that a lane is told of: those of one row for eight lanes of a warp, 0 for the others."""
    return tl.where(unit == 0x3F80, sums[0], tl.where(unit == 0x3F800000, sums[1], 0.0))


@triton.jit
def origins_of(place):
    """The `place` of the lanes from whose words the third and the fourth sum of a lane come, and which half of the word."""
    return tl.inline_asm_elementwise(
        """{
        .reg .u32 lane, q, t;
        mov.u32 lane, %laneid; shr.u32 q, lane, 2; and.b32 t, lane, 3; and.b32 $2, q, 1;
        shr.u32 q, q, 1; shl.b32 t, t, 3; add.u32 q, q, t; shfl.sync.idx.b32 $0, $3, q, 31, -1;
        add.u32 q, q, 4; shfl.sync.idx.b32 $1, $3, q, 31, -1;
        }""",
        "=&r,=&r,=&r,r", [place], dtype=(tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
    )  # fmt: skip

"""Single instructions of NVIDIA GPUs that Triton has no name for, each beside its meaning in plain Triton.

The interpreter (TRITON_INTERPRET=1) knows no machine instructions, so it runs the meaning; a compiled kernel runs the instruction. A word
is an int32 that holds four codes, a byte each, the first lowest.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
TWO_TO_15 = tl.constexpr(0x47000000)  # 2**15 as a float32; its second byte counts in ones


@triton.jit
def code_of(t):
    """t, float32, rounded down and limited to 0..255, as int32."""
    if INTERPRETED:
        return tl.minimum(tl.maximum(t, 0.0), 255.0).to(tl.int32)
    else:
        return tl.inline_asm_elementwise("cvt.rzi.u8.f32 $0, $1;", "=r,f", [t], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def dot4(a, b):
    """The sum of the products of the bytes of two words."""
    if INTERPRETED:
        s = (a & 255) * (b & 255)
        for i in tl.static_range(1, 4):
            s += ((a >> (8 * i)) & 255) * ((b >> (8 * i)) & 255)
        return s
    else:
        return tl.inline_asm_elementwise("dp4a.u32.u32 $0, $1, $2, 0;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def byte_as_float(word, NUMBER: tl.constexpr):
    """2**15 + byte NUMBER of a word, as float32."""
    if INTERPRETED:
        return ((((word >> (8 * NUMBER)) & 255) << 8) | TWO_TO_15).to(tl.float32, bitcast=True)
    else:
        bits = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, 0x47000000, $2;", "=r,r,r", [word, 0x7404 + 16 * NUMBER], dtype=tl.int32, is_pure=True, pack=1
        )
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def least_of(a, b):
    """The lesser of two values of a pool; NaN if either is NaN. Two 16-bit values an instruction."""
    if INTERPRETED:
        return tl.where((a.to(tl.float32) < b.to(tl.float32)) | (a.to(tl.float32) != a.to(tl.float32)), a, b)
    elif a.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise("min.NaN.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.bfloat16, is_pure=True, pack=2)
    elif a.dtype == tl.float16:
        return tl.inline_asm_elementwise("min.NaN.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.float16, is_pure=True, pack=2)
    else:
        return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def most_of(a, b):
    """The greater of two values of a pool; NaN if either is NaN. Two 16-bit values an instruction."""
    if INTERPRETED:
        return tl.where((a.to(tl.float32) > b.to(tl.float32)) | (a.to(tl.float32) != a.to(tl.float32)), a, b)
    elif a.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise("max.NaN.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.bfloat16, is_pure=True, pack=2)
    elif a.dtype == tl.float16:
        return tl.inline_asm_elementwise("max.NaN.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.float16, is_pure=True, pack=2)
    else:
        return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def widened(x):
    """Values of a pool as float32."""
    if INTERPRETED or x.dtype != tl.bfloat16:
        return x.to(tl.float32)
    else:  # one instruction a value
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r", [x], dtype=tl.int32, is_pure=True, pack=2
        ).to(tl.float32, bitcast=True)


@triton.jit
def rounded(x, element: tl.constexpr):
    """x as float32, rounded to nearest-even in the pool's dtype."""
    if INTERPRETED and element == tl.bfloat16:  # the interpreter's own cast truncates
        bits = x.to(tl.int32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    elif element == tl.bfloat16 and len(x.shape) == 2:  # two values in three instructions
        return tl.inline_asm_elementwise(
            "{ .reg .b32 both; cvt.rn.bf16x2.f32 both, $3, $2; shl.b32 $0, both, 16; and.b32 $1, both, 0xffff0000; }",
            "=r,=r,f,f", [x], dtype=tl.int32, is_pure=True, pack=2,
        ).to(tl.float32, bitcast=True)  # fmt: skip
    else:
        return x.to(element).to(tl.float32)


@triton.jit
def narrowed(x, element: tl.constexpr):
    """x, float32, rounded to nearest-even, as values of a pool."""
    if INTERPRETED:
        return rounded(x, element).to(element)
    else:
        return x.to(element)


@triton.jit
def quarters_of(x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS] as four tensors [ROWS, COLS / 4], each of every fourth channel."""
    even, odd = tl.split(tl.reshape(x, (ROWS, COLS // 4, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def word_of(t0, t1, t2, t3):
    """Four tensors of float32, each rounded down and limited to 0..255, as a word. Two instructions convert and pack four values."""
    if INTERPRETED:
        return code_of(t0) + code_of(t1) * 256 + code_of(t2) * 65536 + code_of(t3) * 16777216
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .s32 a, b, c, d; .reg .b32 upper;
            cvt.rzi.s32.f32 a, $1; cvt.rzi.s32.f32 b, $2; cvt.rzi.s32.f32 c, $3; cvt.rzi.s32.f32 d, $4;
            cvt.pack.sat.u8.s32.b32 upper, d, c, 0;
            cvt.pack.sat.u8.s32.b32 $0, b, a, upper;
            }""",
            "=r,f,f,f,f", [t0, t1, t2, t3], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def odd_bytes(word):
    """Bytes 1 and 3 of a word, as two 16-bit numbers."""
    if INTERPRETED:
        return (word >> 8) & 0x00FF00FF
    else:
        return tl.inline_asm_elementwise("prmt.b32 $0, $1, 0, 0x4341;", "=r,r", [word], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def channels_of(c0, c1, c2, c3, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Four tensors [ROWS, COLS / 4], each of every fourth channel, as one [ROWS, COLS]."""
    return tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (ROWS, COLS))

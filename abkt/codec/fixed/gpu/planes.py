"""Bit planes of words, in Triton: a transpose of eight words, one an eighth of the tile, by shifts of whole words.

Word e holds the codes of four channels at one token of eighth e (instructions.py). The passes want, of the same four channels, the same bit
of all eight eighths in a byte (quantize.py). Three rounds of a butterfly do that for the four upper bits of the codes, two rounds for the
lower ones: a shift and a three-input logical instruction for each word and round, so about one instruction a value in all.
"""

from __future__ import annotations

import triton
import triton.language as tl

_NIBBLES, _PAIRS, _SINGLES = tl.constexpr(0x0F0F0F0F), tl.constexpr(0x33333333), tl.constexpr(0x55555555)


@triton.jit
def _mixed(low, high, mask):
    """The bits of `low` where mask is 1, those of `high` where it is 0."""
    return high ^ ((low ^ high) & mask)


@triton.jit
def _tops(low, high, mask, SHIFT: tl.constexpr):
    """The upper half of each field of `low` in the place of the lower half, beside the upper half of `high`."""
    return _mixed(low >> SHIFT, high, mask)


@triton.jit
def _bottoms(low, high, mask, SHIFT: tl.constexpr):
    """The lower half of each field of `low`, beside the lower half of `high` in the place of the upper half."""
    return _mixed(low, high << SHIFT, mask)


@triton.jit
def planes_of(w0, w1, w2, w3, w4, w5, w6, w7):
    """The words of passes 1 to 4, and those of passes 5 and 6, two halves each."""
    a, b = _tops(w0, w4, _NIBBLES, 4), _tops(w1, w5, _NIBBLES, 4)
    c, d = _tops(w2, w6, _NIBBLES, 4), _tops(w3, w7, _NIBBLES, 4)
    even, odd = _tops(a, c, _PAIRS, 2), _tops(b, d, _PAIRS, 2)
    p1, p2 = _tops(even, odd, _SINGLES, 1), _bottoms(even, odd, _SINGLES, 1)
    even, odd = _bottoms(a, c, _PAIRS, 2), _bottoms(b, d, _PAIRS, 2)
    p3, p4 = _tops(even, odd, _SINGLES, 1), _bottoms(even, odd, _SINGLES, 1)
    even, odd = _bottoms(w0, w2, _NIBBLES, 4), _bottoms(w1, w3, _NIBBLES, 4)
    p5a, p6a = _tops(even, odd, _PAIRS, 2), _bottoms(even, odd, _PAIRS, 2)
    even, odd = _bottoms(w4, w6, _NIBBLES, 4), _bottoms(w5, w7, _NIBBLES, 4)
    p5b, p6b = _tops(even, odd, _PAIRS, 2), _bottoms(even, odd, _PAIRS, 2)
    return p1, p2, p3, p4, p5a, p5b, p6a, p6b


@triton.jit
def words_from(p1, p2, p3, p4, p5a, p5b, p6a, p6b):
    """The inverse of planes_of: the eight words."""
    even, odd = _bottoms(p2, p1, _SINGLES, 1), _tops(p2, p1, _SINGLES, 1)  # upper pairs of eighths 0, 2, 4, 6, and of 1, 3, 5, 7
    even_low, odd_low = _bottoms(p4, p3, _SINGLES, 1), _tops(p4, p3, _SINGLES, 1)
    a, c = _bottoms(even_low, even, _PAIRS, 2), _tops(even_low, even, _PAIRS, 2)  # upper nibbles of eighths 0 and 4, and of 2 and 6
    b, d = _bottoms(odd_low, odd, _PAIRS, 2), _tops(odd_low, odd, _PAIRS, 2)
    even, odd = _bottoms(p6a, p5a, _PAIRS, 2), _tops(p6a, p5a, _PAIRS, 2)  # lower nibbles of eighths 0 and 2, and of 1 and 3
    w0, w2 = _bottoms(even, a, _NIBBLES, 4), _mixed(even >> 4, c << 4, _NIBBLES)
    w1, w3 = _bottoms(odd, b, _NIBBLES, 4), _mixed(odd >> 4, d << 4, _NIBBLES)
    even, odd = _bottoms(p6b, p5b, _PAIRS, 2), _tops(p6b, p5b, _PAIRS, 2)
    w4, w6 = _mixed(even, a, _NIBBLES), _tops(even, c, _NIBBLES, 4)
    w5, w7 = _mixed(odd, b, _NIBBLES), _tops(odd, d, _NIBBLES, 4)
    return w0, w1, w2, w3, w4, w5, w6, w7

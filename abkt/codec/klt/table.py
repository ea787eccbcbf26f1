"""A table of small integers as bits, written to be read: the token classes and the means of a stream. It defines the bytes, and is the
reference for the compiled code.

An integer is coded as its difference from a guess: 0 or not, its sign, then its size less 1 as up to STEP bits of "one more" and an
Exp-Golomb code. Where the table `predicts`, the guess is the mean of the number to the left and of the one above, and their difference
picks the contexts; else the guess is 0, and the column picks them. The bits go through the range coder of planes.py, with chances that
start at one half.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from abkt.codec.klt.planes import LONGEST, MOST, BitReader, BitWriter, Chances

PLACES, STEP = 8, 12
NEW = 2  # bits that a chance stands for at the start


def pack(values: np.ndarray, predicts: bool) -> bytes:
    """values: [rows, columns] int32."""
    writer = BitWriter()
    for _ in _table(writer, values.astype(np.int64), predicts):
        pass
    return writer.close()


def unpack(data: bytes, rows: int, columns: int, predicts: bool) -> np.ndarray:
    """The inverse of `pack`: [rows, columns] int32."""
    values = np.zeros((rows, columns), dtype=np.int64)
    for row, column, value in _table(BitReader(data), values, predicts):
        values[row, column] = value
    return values.astype(np.int32)


def _table(io: BitWriter | BitReader, values: np.ndarray, predicts: bool) -> Iterator[tuple[int, int, int]]:
    chances = Chances([32_768] * (PLACES * (2 + STEP)))
    chances.seen = [NEW] * len(chances.seen)

    def adaptive(context: int, bit: int) -> int:
        bit = io.bit(bit, chances.zero[context])
        chances.learn(context, bit)
        return bit

    for r, c in np.ndindex(values.shape):
        guess, place = 0, min(c // 8, PLACES - 1)
        if predicts:
            left = int(values[r, c - 1]) if c else 0
            up = int(values[r - 1, c]) if r else left
            guess, place = (left + up) >> 1, min(max(left - up, -4), 3) + 4
        wanted = int(values[r, c]) - guess
        base = place * (2 + STEP)
        m, negative = adaptive(base, int(wanted != 0)), 0
        if m:
            negative = adaptive(base + 1, int(wanted < 0))
            more, count = 0, abs(wanted) - 1
            while more < STEP and adaptive(base + 2 + more, int(count > more)):
                more += 1
            m += more + (_exp_golomb(io, count - more) if more == STEP else 0)
        yield r, c, min(max(guess + (-m if negative else m), -MOST), MOST)


def _exp_golomb(io: BitWriter | BitReader, count: int) -> int:
    rest, bits, value = max(count, 0) + 1, 0, 1
    while bits < LONGEST and io.bit(int(rest >> (bits + 1) > 0), 32_768):
        bits += 1
    for b in reversed(range(bits)):
        value = 2 * value + io.bit(rest >> b & 1, 32_768)
    return value - 1

"""The bit-planes of a cell's coefficients, written to be read. It defines the bytes, and is the reference for the compiled code.

A coefficient is a magnitude and a sign, in units of a step that halves from plane to plane. A pass codes all coefficients at its own step,
given what the passes before it said; so any number of passes is a coarser quantiser, whose zero is two steps wide. Tokens are coded one
after the other, and the coefficients of a token from the largest variance to the smallest.

The *class* of a coefficient is the ratio of its expected standard deviation to the step, in quarter octaves: the class of its variance,
which the calibration gives, plus that of its token, plus 4 for each plane. Below START a coefficient is almost surely 0: it is taken for 0
and costs nothing. It starts with the first pass in which its class reaches START:

    zero or not, then how often one more (14 at most, the rest as an Exp-Golomb code)    bits below what its class can tell are plain
    later, for each plane: if it is 0 still, zero or not; else the next bit of its magnitude
    a plain bit for the sign, when it first is not 0

Each bit has a *context*: its kind, the class, and for "zero or not" the magnitudes of the coefficient above and of the same coefficient of
the token before, which are 0, 1, or 2 and more. A context's chance of a 0 starts where the calibration saw it, in 65,536ths, and learns as
if it had seen FIRST bits. Bits go through a binary range coder (that of LZMA, without its first byte, and without zeros at the end; a
reader takes bytes that are not there for 0). Each pass begins anew, so nothing but its own bytes and the passes before it is needed.

Sources: embedded coding with contexts (EBCOT, Taubman 2000); range coder (Martin 1979, as in LZMA).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

START, TOP = -10, 13  # classes with contexts of their own; above TOP they share those of TOP
CLASSES = TOP - START + 1
NEAR, STEPS, POINTS, ESCAPE = 9, 8, 3, 14
LATER = CLASSES * NEAR  # the first context of "zero or not" of coefficients that started before
MORE = 2 * CLASSES * NEAR  # of "one more"
HALF = MORE + CLASSES * STEPS  # of the next bit of a magnitude
CONTEXTS = HALF + CLASSES * POINTS
FIRST, LAST = 24, 255  # bits that a chance stands for: at the start of a pass, and at most
LONGEST, WIDEST = 24, 16  # bits of an Exp-Golomb code, and plain bits of a class
MOST = 1 << 24  # magnitudes at the finest step are below it


def level(k: int) -> int:
    return min(k, TOP) - START


@dataclass(slots=True)
class Chances:
    """How likely each context's next bit is 0, in 65,536ths."""

    zero: list[int]
    seen: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = [FIRST] * len(self.zero)

    def learn(self, context: int, bit: int) -> None:
        zero, rate = self.zero[context], 65_536 // (self.seen[context] + 2)
        zero = zero - (zero * rate >> 16) if bit else zero + ((65_535 - zero) * rate >> 16)
        self.zero[context] = min(max(zero, 32), 65_504)
        self.seen[context] = min(self.seen[context] + 1, LAST)


class BitWriter:
    """A range coder's writer: `bit` takes a bit and the chance that it is 0."""

    def __init__(self) -> None:
        self.low, self.range, self.out = 0, 0xFFFF_FFFF, bytearray()
        self.shifts = 0

    def bit(self, value: int, zero: int) -> int:
        part = (self.range >> 16) * zero
        if value:
            self.low, self.range = self.low + part, self.range - part
        else:
            self.range = part
        while self.range < 1 << 24:
            self.range, self.low, self.shifts = self.range << 8, self.low << 8, self.shifts + 1
        return value

    def close(self) -> bytes:
        return self.low.to_bytes(self.shifts + 5, "big")[1:].rstrip(b"\0")


class BitReader:
    """The inverse of BitWriter."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.range, self.code = data, 0, 0xFFFF_FFFF, 0
        for _ in range(4):
            self._next()

    def _next(self) -> None:
        self.code = (self.code << 8 | (self.data[self.at] if self.at < len(self.data) else 0)) & 0xFFFF_FFFF
        self.at += 1

    def bit(self, value: int, zero: int) -> int:
        part = (self.range >> 16) * zero
        value = int(self.code >= part)
        if value:
            self.code, self.range = self.code - part, self.range - part
        else:
            self.range = part
        while self.range < 1 << 24:
            self.range = self.range << 8
            self._next()
        return value


@dataclass(frozen=True, slots=True)
class PlaneTables:
    """What both sides know of a model's coefficients.

    chances: [CONTEXTS] uint16, where each context starts. points: [CLASSES, POINTS] float32, where in its bin a magnitude of 1, 2, 3 and
    more is reconstructed, 0 to 1. planes: for each pass, its planes below the first step.
    """

    chances: np.ndarray
    points: np.ndarray
    planes: tuple[int, ...]

    def point(self, k: int, magnitude: int) -> float:
        return float(self.points[level(k), min(magnitude, POINTS) - 1])


def encode_cell(y: np.ndarray, token: np.ndarray, klass: np.ndarray, tables: PlaneTables) -> tuple[list[bytes], np.ndarray]:
    """The passes of a cell, and the squared error after each, [passes + 1], in squared finest steps.

    y: [tokens, coefficients] float32, in finest steps. token, klass: int32, classes of the tokens and of the coefficients at the first
    step. Raises ValueError for a magnitude of MOST or more, or one that is not finite.
    """
    if not (np.abs(y) < MOST).all():
        raise ValueError(f"a coefficient is not below {MOST} finest steps")
    finest = tables.planes[-1]
    target, sign = np.abs(y).astype(np.int64), (y < 0).astype(np.int64)
    found, negative = np.zeros(y.shape, dtype=np.int64), np.zeros(y.shape, dtype=bool)
    slots, errors = [], [float(np.square(y.astype(np.float64)).sum())]
    for index, planes in enumerate(tables.planes):
        writer = BitWriter()
        before = tables.planes[index - 1] if index else None
        _pass(writer, tables, token, klass, before, planes, found, negative, target >> (finest - planes), sign)
        slots.append(writer.close())
        errors.append(float(np.square(np.abs(y) - np.abs(_values(found, negative, token, klass, tables, planes))).sum()))
    return slots, np.array(errors)


def decode_cell(slots: Sequence[bytes], token: np.ndarray, klass: np.ndarray, tables: PlaneTables) -> np.ndarray:
    """The values that the first passes of a cell give, [tokens, coefficients] float32, in finest steps."""
    shape = (len(token), len(klass))
    found, negative = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for index, data in enumerate(slots):
        before = tables.planes[index - 1] if index else None
        _pass(BitReader(data), tables, token, klass, before, tables.planes[index], found, negative)
    return _values(found, negative, token, klass, tables, tables.planes[len(slots) - 1]) if slots else np.zeros(shape, np.float32)


def _values(found: np.ndarray, negative: np.ndarray, token: np.ndarray, klass: np.ndarray, tables: PlaneTables, planes: int) -> np.ndarray:
    k = np.clip(token[:, None] + klass + 4 * planes, START, TOP) - START
    points = tables.points[k, np.clip(found, 1, POINTS) - 1]
    size = np.where(found > 0, (found.astype(np.float32) + points) * np.float32(1 << (tables.planes[-1] - planes)), np.float32(0))
    return np.where(negative, -size, size)


def _pass(
    io: BitWriter | BitReader, tables: PlaneTables, token: np.ndarray, klass: np.ndarray, before: int | None, planes: int,
    found: np.ndarray, negative: np.ndarray, target: np.ndarray | None = None, sign: np.ndarray | None = None,
) -> None:  # fmt: skip
    """One pass; `found` and `negative` are brought up to date. target, sign: what is to be written, or None to read it."""
    chances = Chances(tables.chances.tolist())
    largest = MOST >> (tables.planes[-1] - planes)

    def adaptive(context: int, bit: int) -> int:
        bit = io.bit(bit, chances.zero[context])
        chances.learn(context, bit)
        return bit

    for t in range(len(token)):
        up = 0
        for j in range(len(klass)):
            base = int(klass[j] + token[t])
            k = base + 4 * planes
            if k < START:
                up = 0
                continue
            near = min(2, int(found[t - 1, j]) if t else 0) * 3 + min(2, up)
            whole = int(target[t, j]) if target is not None else 0
            m = was = int(found[t, j])
            if before is not None and base + 4 * before >= START:
                for plane in range(before + 1, planes + 1):
                    at = level(base + 4 * plane)
                    context = HALF + at * POINTS + min(m, POINTS) - 1 if m else LATER + at * NEAR + near
                    m = 2 * m + adaptive(context, whole >> (planes - plane) & 1)
            else:
                m = min(_start(io, adaptive, level(k), min(max(0, (k - TOP) >> 2), WIDEST), near, whole), largest)
            if m and not was:
                negative[t, j] = io.bit(int(sign[t, j]) if sign is not None else 0, 32_768)
            found[t, j] = up = m


def _start(io: BitWriter | BitReader, adaptive, at: int, shift: int, near: int, whole: int) -> int:  # type: ignore[no-untyped-def]
    high = whole >> shift
    m = adaptive(at * NEAR + near, int(high > 0))
    if m:
        while m <= ESCAPE and adaptive(MORE + at * STEPS + min(m, STEPS) - 1, int(high > m)):
            m += 1
        if m > ESCAPE:
            rest, bits = high - m + 1, 0
            while bits < LONGEST and io.bit(int(rest >> (bits + 1) > 0) if rest > 0 else 0, 32_768):
                bits += 1
            value = 1
            for b in reversed(range(bits)):
                value = 2 * value + io.bit(rest >> b & 1 if rest > 0 else 0, 32_768)
            m += value - 1
    for b in reversed(range(shift)):
        m = 2 * m + io.bit(whole >> b & 1, 32_768)
    return m

"""The static tables of the entropy coder: frequencies for rANS, contexts of refinement, points of reconstruction. They are the same for all
models.

The class of a channel, in these tables, is the ratio of its standard deviation to the width of a bin, in quarter octaves: class k stands
for 2**(k / 4). Densities are symmetric about 0, so tables are about magnitudes: magnitude a is the bin from a to a + 1 widths. There are
two shapes of density, both scale mixtures of normals with a lognormal scale: nearly normal (kurtosis 3.1), and with heavier tails
(kurtosis 5).

`SHARES` has three kinds of rows, each a distribution of symbols: for a channel that starts, one row per shape and class (symbol 2 * a +
sign, at most MOST magnitudes); for a bin that is halved, one row per level of skew (symbol 0: the half nearer to 0); and for a bin that is
quartered, one uniform row. All tables are computed from the normal distribution and checked against a digest, so that sender and receiver
have the same tables.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from abkt.codec.rans.oracle import shares_of

VERSION = 1
DIGEST = 0xB604661C
LEAST, TOP = -9, 12  # classes
CLASSES = TOP - LEAST + 1
MOST = 32  # magnitudes of a starting channel
WIDEST = 64  # magnitudes with a context or a point of reconstruction of their own
SHAPES = (0.1, 0.36)  # spread of the logarithm of the scale
REACH = 12.0  # deviations up to which the symbols of a starting channel have a share
LEVELS, LEVEL = 16, 0.2  # of skew; one level is this much of the logarithm of the odds of the nearer half
HALVES = len(SHAPES) * CLASSES  # the first row for halved bins
QUARTERS = HALVES + LEVELS
ROWS = QUARTERS + 1
POINT = 64  # points of reconstruction are in 64ths of a bin


def _nodes(spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Scales and weights of a mixture of variance 1."""
    at = np.arange(-12, 13) / 4.0
    weights = np.exp(-at * at / 2)
    scales = np.exp(spread * at)
    weights /= weights.sum()
    return scales / math.sqrt((weights * scales * scales).sum()), weights


def _within(edges: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Probability of |x| between neighbours of `edges` (deviations, rising from 0), and the integral of |x| over it."""
    scales, weights = _nodes(spread)
    z = edges[:, None] / scales
    beyond = np.vectorize(math.erfc)(z / math.sqrt(2.0))
    density = np.exp(-z * z / 2) * math.sqrt(2 / math.pi) * scales
    return -np.diff(beyond @ weights), -np.diff(density @ weights)


def _beyond(deviations: float, spread: float, gain: float) -> float:
    """How many of 65,536 values lie beyond `deviations`, if the standard deviation of the values is 2**(gain / 4) times as large."""
    edges = np.array([deviations * 2.0 ** (-gain / 4), 1e3])
    return 65_536 * float(_within(edges, spread)[0][0])


GAIN_BIAS, GAINS = 8, 16  # a gain of g quarter octaves is sent as g + GAIN_BIAS
FAR = 3  # deviations
OVER = tuple(round(_beyond(1, SHAPES[0], g - GAIN_BIAS - 0.5)) for g in range(1, GAINS))
HEAVY = tuple(round((_beyond(FAR, SHAPES[0], g - GAIN_BIAS) * _beyond(FAR, SHAPES[1], g - GAIN_BIAS)) ** 0.5) for g in range(GAINS))
"""Thresholds, of 65,536 values: OVER, how many beyond one deviation give the next higher gain; HEAVY, by gain, how many beyond FAR
deviations give the heavier shape."""


def _build() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    starts = np.zeros((len(SHAPES), CLASSES, 2 * MOST))
    levels = np.zeros((len(SHAPES), CLASSES, WIDEST), dtype=np.uint8)
    points = np.full((len(SHAPES), CLASSES, WIDEST), POINT // 2, dtype=np.uint8)
    saved = np.zeros(CLASSES, dtype=np.int64)
    for shape, spread in enumerate(SHAPES):
        for k in range(CLASSES):
            width = 2.0 ** (-(k + LEAST) / 4)  # in deviations
            chance, first = _within(np.arange(WIDEST + 1) * width, spread)
            held = (np.arange(MOST) * width < REACH) | (np.arange(MOST) < 2)
            starts[shape, k] = np.repeat(np.where(held, np.maximum(chance[:MOST], 1e-6), 0), 2)
            halves = np.maximum(_within(np.arange(2 * WIDEST + 1) * (width / 2), spread)[0], 1e-300).reshape(WIDEST, 2)
            odds = np.log(halves[:, 0] / halves[:, 1])
            levels[shape, k] = np.clip(np.round(odds / LEVEL), 0, LEVELS - 1)
            seen = chance > 1e-9
            points[shape, k, seen] = np.clip(np.round((first[seen] / chance[seen] / width - np.arange(WIDEST)[seen]) * POINT), 1, POINT - 1)
            points[shape, k, ~seen] = points[shape, k, seen][-1]
            if shape == 0:
                near = halves[:, 0] / halves.sum(1)
                bits = -near * np.log2(near) - (1 - near) * np.log2(np.maximum(1 - near, 1e-300))
                saved[k] = round(4096 * float((chance * (1 - bits)).sum()))
    rows = np.zeros((ROWS, 2 * MOST), dtype=np.uint16)
    rows[:HALVES] = shares_of(starts.reshape(HALVES, -1))
    nearer = 1 / (1 + np.exp(-LEVEL * np.arange(LEVELS)))
    rows[HALVES:QUARTERS, :2] = shares_of(np.stack((nearer, 1 - nearer), 1))
    rows[QUARTERS, :4] = 1024
    return rows, levels, points, saved


SHARES, SKEW, POINTS, SAVED = _build()
"""SHARES [ROWS, 64] uint16. SKEW, POINTS [shapes, classes, magnitudes] uint8: level of skew of a bin that is halved, and point of
reconstruction in 64ths. SAVED [classes] int64: how much rANS saves when a bin of this class is halved, in 4096ths of a bit per value."""

for _table in (SHARES, SKEW, POINTS, SAVED):
    _table.setflags(write=False)

_found = zlib.crc32(b"".join(t.astype("<i8").tobytes() for t in (SHARES, SKEW, POINTS, SAVED, np.array(OVER + HEAVY))))
if _found != DIGEST:
    raise RuntimeError(f"the entropy tables came out as {_found:#x} here, not {DIGEST:#x}; this machine would misread streams of others")

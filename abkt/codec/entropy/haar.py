"""Differences of neighbouring tokens in an embedded stream: an orthonormal Haar transform over 2, 4 or 8 tokens.

To code a token as a difference to its neighbour, as CacheGen does (SIGCOMM'24, section 5.2), both ends need the neighbour as it was
decoded, and in an embedded stream that depends on the cut. A transform does not have this problem: neighbours a, b become (a + b) /
sqrt(2) and (a - b) / sqrt(2), and at the next level the sums are combined in the same way. The common part of neighbouring tokens ends up
in few coefficients, which have a scale of their own. The transform keeps squared errors, so slopes stay right. For tokens with a
correlation of r between neighbours, one level saves -log2(1 - r**2) / 4 bits per value, and all levels together at most twice that. JPEG
2000 does the same by lifting in two steps.

Keys are rotated by their position (RoPE), which hides the common part of neighbours. If the base of RoPE is known, the rotation is undone
first.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

MOST_LEVELS = 3
WORTH_BITS = 0.02  # bits per value that a level must save at least, so that noise in the statistics does not choose it
ROOT_HALF = np.float32(0.5**0.5)


def forward(x: np.ndarray, levels: int) -> np.ndarray:
    """x [..., tokens, channels] as coefficients [..., tokens >> levels, channels << levels]: the sums, then the differences from coarse to
    fine.

    tokens: a multiple of 2**levels. Each result is one addition and one multiplication, so float32 is the same on every machine.
    """
    if not levels:
        return x
    a, b = x[..., 0::2, :], x[..., 1::2, :]
    root = x.dtype.type(ROOT_HALF)
    fine = (a - b) * root
    coarse = forward((a + b) * root, levels - 1)
    return np.concatenate((coarse, fine.reshape(*coarse.shape[:-1], -1)), -1)


def inverse(y: np.ndarray, levels: int) -> np.ndarray:
    """The inverse of `forward`, to float32's rounding: [..., tokens, channels]."""
    if not levels:
        return y
    half = y.shape[-1] // 2
    coarse = inverse(y[..., :half], levels - 1)
    fine, root = y[..., half:].reshape(coarse.shape), y.dtype.type(ROOT_HALF)
    pairs = np.stack(((coarse + fine) * root, (coarse - fine) * root), -2)
    return pairs.reshape(*y.shape[:-2], -1, coarse.shape[-1])


def per_coefficient(of_bands: np.ndarray, levels: int) -> np.ndarray:
    """Values that are given once per band, [strips, (levels + 1) * channels], for each coefficient of `forward`: [strips, channels <<
    levels]."""
    bands = np.split(of_bands, levels + 1, axis=1)
    return np.concatenate([bands[0], *(np.tile(band, 1 << i) for i, band in enumerate(bands[1:]))], 1)


def bands_of(y: np.ndarray, levels: int) -> list[np.ndarray]:
    """The coefficients of each band of forward(x, levels), as [..., n, channels]: sums, then differences from coarse to fine."""
    channels = y.shape[-1] >> levels
    edges = [0, *(channels << i for i in range(levels + 1))]
    return [y[..., start:stop].reshape(*y.shape[:-2], -1, channels) for start, stop in pairwise(edges)]


def best_levels(x: np.ndarray, most: int) -> np.ndarray:
    """How many levels save most bits for strips x [strips, tokens, channels], judged by the deviations of their bands: [strips] uint8, at
    most `most`.

    Each level costs one byte per channel for its scales, and must save WORTH_BITS per value on top.
    """

    def mean_squares(levels: int) -> list[tuple[np.ndarray, int]]:
        whole = x[:, : x.shape[1] >> levels << levels]
        return [(np.square(band).mean(1), band.shape[1]) for band in bands_of(forward(whole, levels), levels)]

    return levels_of(mean_squares, x.shape[1], most)


def levels_of(mean_squares: Callable[[int], list[tuple[np.ndarray, int]]], tokens: int, most: int) -> np.ndarray:
    """`best_levels` of strips of `tokens` tokens. mean_squares(levels): for each band its mean squares [strips, channels], and how many
    values of each channel it has."""
    least = _log_deviation(mean_squares(0))
    chosen = np.zeros(len(least), dtype=np.uint8)
    for levels in range(1, most + 1):
        if not tokens >> levels:
            break
        bits = _log_deviation(mean_squares(levels)) + levels * (WORTH_BITS + 8 / tokens)
        better = bits < least
        chosen[better], least[better] = levels, bits[better]
    return chosen


def _log_deviation(bands: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Mean over values of log2 of their band's and channel's deviation: [strips]."""
    logs = [np.log2(np.maximum(np.sqrt(mean_square), 1e-30)).mean(1) * count for mean_square, count in bands]
    return np.sum(logs, axis=0) / sum(count for _, count in bands)

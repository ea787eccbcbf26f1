"""The order of passes on the wire, by distortion removed per byte, in at most 64 bands; and the curve of the stream that results.

A cell has a point (bytes, distortion left) after each of its passes. The slope of a pass is the slope of its segment of the convex hull of
these points. So the slopes of a cell fall from pass to pass, and sorting all passes by slope keeps those of each cell in order. Passes that
remove nothing (slope 0 or less) are never sent. Source: EBCOT's post-compression rate-distortion optimisation (Taubman 2000) and JPEG
2000's quality layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from abkt.codec.cells import WIDTHS, Cells
from abkt.policy.view import Curve

MAX_BANDS = 64
KEYS = 1 << 16
EVEN = 0.05  # share of a stream's bytes from which finer_first's bands grow
NEVER = 255
"""The band of a pass that is not sent."""


@dataclass(frozen=True, slots=True)
class Bands:
    """of: [passes, cells] uint8, the band of every pass, or NEVER. count: bands in use, numbered 0 to count - 1."""

    of: np.ndarray
    count: int


def weighted_distortion(
    errors: np.ndarray, deviation: np.ndarray, weights: np.ndarray | None, cells: Cells, sent: np.ndarray | None = None
) -> np.ndarray:
    """Each cell's share of the stream's distortion D after each pass, [passes + 1, cells]; the sum over the cells is D.

    errors: [passes + 1, cells], squared errors. deviation: [layers, kinds, heads], as in CodedCells. weights: one per cell, in the shape
    `cells.shape`, at least 0; only ratios matter, and None counts all cells the same. sent: [cells] bool, cells that travel; None: all.
    Every (layer, kind) counts the same, by its squared error over its squared deviation from channel means. So D = 1 if every value is
    replaced by its channel mean, and D = 0 without error. A (layer, kind) that does not vary over the tokens is measured against its own
    error at 0 bits instead. Raises ValueError for weights of another shape, below 0 or not finite.
    """
    layers, kinds, heads, tiles = cells.shape
    mean_alone = errors[0].reshape(cells.shape).sum((2, 3))
    scale = deviation.sum(2)
    scale = np.where(scale > 0, scale, mean_alone)
    share = 1 / (np.where(scale > 0, scale, 1.0) * layers * kinds)
    factor = np.repeat(share.reshape(-1), heads * tiles)
    if weights is not None:
        if weights.shape != cells.shape:
            raise ValueError(f"weights {weights.shape} do not fit; one per cell is needed: [layers, kinds, heads, tiles] = {cells.shape}")
        flat = weights.astype(np.float64).reshape(-1)
        if flat.size and not (np.isfinite(flat).all() and flat.min() >= 0 and flat.max() > 0):
            raise ValueError("weights must be finite and at least 0, and not all 0")
        factor = factor * flat / (_mean(flat, cells.values if sent is None else cells.values * sent))
    return errors * factor


def _mean(weights: np.ndarray, values: np.ndarray) -> float:
    return float(np.average(weights, weights=values)) if values.any() else 1.0


def hull_slopes(sizes: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Distortion removed per byte on the convex hull of each cell, [passes, cells], falling from pass to pass.

    sizes: [passes + 1, cells] bytes of each pass; left: distortion after it. Computed by the min-max formula of isotonic regression: the
    slope of pass p is the minimum, over all starts before p, of the steepest descent from the start to an end at or after p.
    """
    spent = sizes.cumsum(0)
    passes = len(sizes) - 1
    slopes = np.empty((passes, sizes.shape[1]))
    for p in range(1, passes + 1):
        steepest = [
            np.max([(left[start] - left[end]) / np.maximum(spent[end] - spent[start], 1) for end in range(p, passes + 1)], axis=0)
            for start in range(p)
        ]
        slopes[p - 1] = np.min(steepest, axis=0)
    return slopes


def slope_bands(sizes: np.ndarray, left: np.ndarray, finer_first: bool = False) -> Bands:
    """Passes by falling slope, in at most MAX_BANDS bands of about equal bytes; or, with finer_first, the first ones of about equal ratios.
    Slopes are not sorted but counted into bins of a float32's exponent and 8 bits of mantissa, which takes linear time; slopes within 0.4 %
    of each other may count as equal."""
    slopes = hull_slopes(sizes, left).astype(np.float32)
    useful = slopes > 0
    if not useful.any():
        return Bands(np.full(slopes.shape, NEVER, dtype=np.uint8), 0)
    key = np.where(
        useful, slopes.view(np.int32) >> 15, 0
    )  # rises with the slope; key 0 holds passes that are not sent, and slopes below 2**-126
    in_bin = np.bincount(key.reshape(-1), weights=(sizes[1:] * useful).reshape(-1), minlength=KEYS).astype(np.int64)[::-1]
    ends = in_bin.cumsum()
    placed, before = (_band_at(e, max(1, int(ends[-1])), finer_first) for e in (ends, ends - in_bin))
    begins_band = (in_bin > 0) & (placed != before)
    number = begins_band.cumsum()[::-1] - 1
    return Bands(np.where(useful, number[key], NEVER).astype(np.uint8), int(begins_band.sum()))


def _band_at(ends: np.ndarray, total: int, finer_first: bool) -> np.ndarray:
    """The band in which each of `ends` (bytes, of `total`) lies; -1 for 0 bytes."""
    if finer_first:
        share = np.log1p(ends / (EVEN * total)) / np.log1p(1 / EVEN)
        return np.minimum(np.ceil(share * MAX_BANDS - 1e-9), MAX_BANDS).astype(np.int64) - 1
    return -(-ends * MAX_BANDS // total) - 1


def uniform_bands(sizes: np.ndarray, verbatim: np.ndarray) -> Bands:
    """The first pass of all cells, then the second pass of all cells, and so on: the order of a codec with one precision for all cells.
    verbatim: [cells] bool."""
    passes = len(sizes) - 1
    band = np.repeat(np.arange(passes, dtype=np.uint8)[:, None], sizes.shape[1], axis=1)
    band[:, verbatim] = NEVER
    return Bands(band, 0 if verbatim.all() else passes)


def distortions(bands: Bands, left: np.ndarray) -> tuple[float, ...]:
    """The stream's distortion at each cut: after the metadata, and after each band."""
    sent = bands.of != NEVER
    removed = np.bincount(bands.of[sent], weights=(left[:-1] - left[1:])[sent], minlength=bands.count).cumsum()
    return (float(left[0].sum()), *(left[0].sum() - removed).tolist())


def curve_of(bands: Bands, cells: Cells, verbatim: np.ndarray, ends: tuple[int, ...], distortion: tuple[float, ...]) -> Curve:
    """Bytes, distortion and bits of each cut. ends: wire bytes up to each cut. The bits are per value of the cells that are coded."""
    sent = bands.of != NEVER
    coded_values = max(1, int(cells.values[~verbatim].sum()))
    widths = np.array(WIDTHS[: cells.passes])[:, None] * cells.values
    bits = np.bincount(bands.of[sent], weights=widths[sent], minlength=bands.count).cumsum() / coded_values
    return Curve(tuple(float(end) for end in ends), distortion, (0.0, *bits.tolist()))

"""The centre and the scale of each channel of a strip: the statistics that the entropy coder carries once per stream.

Rotating centres. K is rotated by its position (RoPE), so a constant part of K before the rotation rotates with the position afterwards. If
a strip says so, its centre rotates by the same angle: channel c with c + dim / 2, by cosine and sine in 4,096ths, so that their products
with a centre in half precision are exact. This predicts K from the position alone, so streams stay embedded. On K of the probe model it
saves 0.5 bit per value.

Differences. A strip may be coded as `levels` of sums and differences of neighbouring tokens (haar.py). If its centre rotates, the rotation
is undone first. Each band of coefficients then has a scale per channel. A calibration gives the levels, or the strip chooses them itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.entropy import haar
from abkt.codec.entropy.plan import ORIGIN, Plan, plan_of
from abkt.codec.fixed.quantize import LIMIT

OUTLIER_DEVIATIONS = 8  # from its channel's mean; a value farther away does not count in the statistics
BACK = np.array([1.0, -1.0], dtype=np.float32)[:, None]  # a rotation (cosine, sine) times this is its inverse


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of strips with equal `levels` of differences. centre: [strips, dim] float32, each a value of the pool's dtype. log_scale:
    [strips, (levels + 1) * dim] uint8, codes of the scales (plan.py), band after band. rotates: [strips] bool, whether the centre
    rotates."""

    centre: np.ndarray
    log_scale: np.ndarray
    rotates: np.ndarray
    levels: int = 0

    @property
    def plan(self) -> Plan:
        return plan_of(haar.per_coefficient(self.log_scale, self.levels))


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of the values of cells. Their residuals are coded, or if levels > 0, the differences of neighbouring residuals.

    centre: [cells, tokens, dim] float32, the predicted values. rotates: [cells] bool, which cells' residuals are rotated back by `angles`
    [cells, tokens, 2, dim // 2] before the differences are taken; both None if there are none.
    """

    centre: np.ndarray
    levels: int
    rotates: np.ndarray | None = None
    angles: np.ndarray | None = None

    def coefficients(self, x: np.ndarray) -> np.ndarray:
        """The coefficients of x [cells, tokens, dim] float32 that are coded: [cells, tokens >> levels, dim << levels]."""
        residual = x - self.centre
        if self.rotates is not None and self.angles is not None:
            residual = np.where(self.rotates[:, None, None], rotated(residual, self.angles * BACK), residual)
        return haar.forward(residual, self.levels)

    def values(self, coefficients: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        """The inverse of `coefficients`: x, rounded to `dtype`."""
        residual = haar.inverse(coefficients, self.levels)
        if self.rotates is not None and self.angles is not None:
            residual = np.where(self.rotates[:, None, None], rotated(residual, self.angles), residual)
        return rounded(residual + self.centre, dtype)


def rotation_of(positions: int, dim: int, theta: float = 10_000.0) -> np.ndarray:
    """Cosine and sine of RoPE's angles in 4,096ths: [positions, 2, dim // 2] float32. Frequencies are theta**(-2 * i / dim)."""
    angles = np.arange(positions)[:, None] * theta ** (-2.0 * np.arange(dim // 2) / dim)
    return np.round(np.stack((np.cos(angles), np.sin(angles)), 1) * 4096).astype(np.float32) / 4096


def strip_stats(x: np.ndarray, dtype: torch.dtype, rotation: np.ndarray | None = None, levels: int = 0) -> Stats:
    """The statistics of strip_groups, for strips that all have `levels` levels of differences."""
    return strip_groups(x, dtype, rotation, np.full(len(x), levels))[0][1]


def strip_groups(
    x: np.ndarray, dtype: torch.dtype, rotation: np.ndarray | None, levels: np.ndarray | int
) -> list[tuple[np.ndarray, Stats]]:
    """The statistics of strips x [strips, tokens, dim] float32, in groups of strips with equal levels: (numbers of the strips, statistics).

    rotation: [tokens, 2, dim // 2] if centres may rotate; a centre rotates if that makes the scales smaller. levels: [strips], as
    calibrated; or one number, the most levels that a strip may choose. Values that are not finite, above the codec's limit, or more than
    OUTLIER_DEVIATIONS deviations from their channel's mean count as that mean, because one such value would widen the steps of all tokens.
    """
    y = _without_outliers(np.where(np.abs(x) < LIMIT[dtype], x, np.nan).astype(np.float64))
    centre = rounded(y.mean(1).astype(np.float32), dtype)
    left = y - centre[:, None]
    scale, rotates = _scale_of(left, centre), np.zeros(len(x), dtype=bool)
    if rotation is not None:
        narrow = torch.bfloat16 if dtype == torch.float32 else dtype  # so that products with an angle are exact
        level = rounded(rotated(y, rotation * BACK).mean(1).astype(np.float32), narrow)  # the mean before RoPE
        rest = y - rotated(level[:, None], rotation)
        its_scale = _scale_of(rest, level)
        rotates = its_scale.sum(1, dtype=np.int64) < scale.sum(1, dtype=np.int64)
        centre, scale = np.where(rotates[:, None], level, centre), np.where(rotates[:, None], its_scale, scale)
        left = np.where(rotates[:, None, None], rotated(rest, rotation * BACK), left)
    chosen = haar.best_levels(left, levels) if isinstance(levels, int) else levels
    found = []
    for count in np.unique(chosen).tolist():
        here = np.flatnonzero(chosen == count)
        if count:
            whole = left[here, : left.shape[1] >> count << count]
            bands = haar.bands_of(haar.forward(whole, count), count)
            scales = np.concatenate([_scale_of(band, centre[here]) for band in bands], 1)
        else:
            scales = scale[here]
        found.append((here, Stats(centre[here], scales, rotates[here], count)))
    return found


def _without_outliers(y: np.ndarray) -> np.ndarray:
    """y [strips, tokens, dim] float64, with NaN and outlying values replaced by their channel's mean. Two rounds are made, since one
    outlying value may hide another."""
    for _ in range(2):
        known = np.isfinite(y)
        count = np.maximum(1, known.sum(1, keepdims=True))
        residual = y - np.where(known, y, 0.0).sum(1, keepdims=True) / count
        deviation = np.sqrt(np.where(known, residual * residual, 0.0).sum(1, keepdims=True) / count)
        outlying = ~known | (np.abs(residual) > OUTLIER_DEVIATIONS * deviation)
        if not outlying.any():
            return y
        y = np.where(outlying, np.nan, y)
    known = np.isfinite(y)
    mean = np.where(known, y, 0.0).sum(1, keepdims=True) / np.maximum(1, known.sum(1, keepdims=True))
    return np.where(known, y, mean)


def _scale_of(residual: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Codes of the root mean square of residual [strips, tokens, dim] over its tokens."""
    return scale_codes(np.square(residual).mean(1), centre)


def scale_codes(mean_square: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Codes of the roots of mean squares; 0 where they are lost in the rounding of the centre."""
    deviation = np.sqrt(mean_square)
    with np.errstate(divide="ignore"):
        code = np.clip(np.round(4 * np.log2(deviation)) + ORIGIN, 1, 255)
    return np.where(deviation > np.abs(centre) * 2.0**-17, code, 0).astype(np.uint8)


def rotated(x: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """x [..., tokens or 1, dim] rotated by `rotation` [..., tokens, 2, dim // 2]."""
    half = x.shape[-1] // 2
    cos, sin = rotation[..., 0, :], rotation[..., 1, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def prediction_of(stats: Stats, strip: np.ndarray, tokens: int, first: np.ndarray, rotation: np.ndarray | None) -> Prediction:
    """The prediction of cells of `tokens` tokens. strip, first: [cells], each cell's strip, and the position of its first token.

    Products with a rotating centre are exact for float16 and bfloat16 pools, and their difference is rounded once.
    """
    unrotated = np.broadcast_to(stats.centre[strip][:, None], (len(strip), tokens, stats.centre.shape[1]))
    if not stats.rotates.any():
        return Prediction(unrotated, stats.levels)
    if rotation is None:
        raise ValueError("a strip's centre rotates with the position; give rotation=rotation_of(positions, dim, theta)")
    angles, rotates = rotation[first[:, None] + np.arange(tokens)], stats.rotates[strip]
    centre = np.where(rotates[:, None, None], rotated(unrotated, angles), unrotated)
    return Prediction(centre, stats.levels, rotates, angles) if stats.levels else Prediction(centre, 0)


def rounded(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(x)).to(dtype).float().numpy()

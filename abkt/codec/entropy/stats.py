"""What a strip of KV is centred on and how it varies: the statistics that the entropy form carries once a stream.

Turning centres. K is turned by its position (RoPE), so what was constant before that is a rotation now. Where a strip says so, its
centre turns by the same angle: channel c with c + dim / 2, by cosine and sine in 4,096ths, so that their products with a centre
in half precision are exact. It is a prediction from the position alone, so streams stay embedded. On the probe's K it saves 0.5 bit.

Differences. A strip may be coded as `levels` of sums and differences of neighbouring tokens (differences.py), turned back before where its
centre turns; then each band has a scale a channel. Whether it is follows from a calibration, or from the strip itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.entropy import haar
from abkt.codec.entropy.plan import ORIGIN, Plan, plan_of
from abkt.codec.fixed.quantize import LIMIT

TAMED = 8  # deviations, of a value that counts for its channel's statistics
BACK = np.array([1.0, -1.0], dtype=np.float32)[:, None]  # times an angle's cosine and sine: the other way


@dataclass(frozen=True, slots=True)
class Stats:
    """Of strips with equal `levels` of differences, once a stream. centre: [strips, dim] float32, each a value of the pool's dtype.
    log_scale: [strips, (levels + 1) * dim] uint8 (entropy_plan.py), band after band. turns: [strips] bool, whether the centre turns."""

    centre: np.ndarray
    log_scale: np.ndarray
    turns: np.ndarray
    levels: int = 0

    @property
    def plan(self) -> Plan:
        return plan_of(haar.per_coefficient(self.log_scale, self.levels))


@dataclass(frozen=True, slots=True)
class Around:
    """What the values of cells are coded around. centre: [cells, tokens, dim] float32. angles: [cells, tokens, 2, dim // 2] and turns:
    [cells] bool, where what is left is turned back before its differences are taken; None where none is."""

    centre: np.ndarray
    levels: int
    turns: np.ndarray | None = None
    angles: np.ndarray | None = None

    def coefficients(self, x: np.ndarray) -> np.ndarray:
        """What is coded of x [cells, tokens, dim] float32: [cells, tokens >> levels, dim << levels]."""
        off = x - self.centre
        if self.turns is not None and self.angles is not None:
            off = np.where(self.turns[:, None, None], turned(off, self.angles * BACK), off)
        return haar.forward(off, self.levels)

    def values(self, coefficients: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        """x again, rounded to `dtype`."""
        off = haar.inverse(coefficients, self.levels)
        if self.turns is not None and self.angles is not None:
            off = np.where(self.turns[:, None, None], turned(off, self.angles), off)
        return rounded(off + self.centre, dtype)


def turn_of(positions: int, dim: int, theta: float = 10_000.0) -> np.ndarray:
    """Cosine and sine of RoPE's angles in 4,096ths: [positions, 2, dim // 2] float32. Frequencies are theta**(-2 * i / dim)."""
    angles = np.arange(positions)[:, None] * theta ** (-2.0 * np.arange(dim // 2) / dim)
    return np.round(np.stack((np.cos(angles), np.sin(angles)), 1) * 4096).astype(np.float32) / 4096


def strip_stats(x: np.ndarray, dtype: torch.dtype, turn: np.ndarray | None = None, levels: int = 0) -> Stats:
    """As strip_groups, of strips that all have so many levels."""
    return strip_groups(x, dtype, turn, np.full(len(x), levels))[0][1]


def strip_groups(x: np.ndarray, dtype: torch.dtype, turn: np.ndarray | None, levels: np.ndarray | int) -> list[tuple[np.ndarray, Stats]]:
    """What strips x [strips, tokens, dim] float32 are centred on and how they vary: strips of equal levels together, by their numbers.

    turn: [tokens, 2, dim // 2] if K may turn; a strip turns where that makes the scales smaller. levels: [strips], as calibrated; or one
    number, the most that a strip may choose for itself. Values that are not finite or above the codec's limit, and those more than TAMED
    deviations from their channel's mean, count as that mean: one wild value would widen the steps of all tokens.
    """
    y = _tamed(np.where(np.abs(x) < LIMIT[dtype], x, np.nan).astype(np.float64))
    centre = rounded(y.mean(1).astype(np.float32), dtype)
    left = y - centre[:, None]
    scale, turns = _scale_of(left, centre), np.zeros(len(x), dtype=bool)
    if turn is not None:
        narrow = torch.bfloat16 if dtype == torch.float32 else dtype  # so that products with an angle are exact
        level = rounded(turned(y, turn * BACK).mean(1).astype(np.float32), narrow)  # as it was before RoPE
        around = y - turned(level[:, None], turn)
        its_scale = _scale_of(around, level)
        turns = its_scale.sum(1, dtype=np.int64) < scale.sum(1, dtype=np.int64)
        centre, scale = np.where(turns[:, None], level, centre), np.where(turns[:, None], its_scale, scale)
        left = np.where(turns[:, None, None], turned(around, turn * BACK), left)
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
        found.append((here, Stats(centre[here], scales, turns[here], count)))
    return found


def _tamed(y: np.ndarray) -> np.ndarray:
    """y [strips, tokens, dim] float64 with what is wild, or NaN, replaced by its channel's mean. Twice, as one wild value hides another."""
    for _ in range(2):
        known = np.isfinite(y)
        count = np.maximum(1, known.sum(1, keepdims=True))
        off = y - np.where(known, y, 0.0).sum(1, keepdims=True) / count
        deviation = np.sqrt(np.where(known, off * off, 0.0).sum(1, keepdims=True) / count)
        wild = ~known | (np.abs(off) > TAMED * deviation)
        if not wild.any():
            return y
        y = np.where(wild, np.nan, y)
    known = np.isfinite(y)
    mean = np.where(known, y, 0.0).sum(1, keepdims=True) / np.maximum(1, known.sum(1, keepdims=True))
    return np.where(known, y, mean)


def _scale_of(off: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Codes of the root mean square over the tokens of off [strips, tokens, dim]; 0 where it is lost in the centre's rounding."""
    deviation = np.sqrt(np.square(off).mean(1))
    with np.errstate(divide="ignore"):
        code = np.clip(np.round(4 * np.log2(deviation)) + ORIGIN, 1, 255)
    return np.where(deviation > np.abs(centre) * 2.0**-17, code, 0).astype(np.uint8)


def turned(x: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """x [..., tokens or 1, dim] turned by `turn` [..., tokens, 2, dim // 2]."""
    half = x.shape[-1] // 2
    cos, sin = turn[..., 0, :], turn[..., 1, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def around_of(stats: Stats, strip: np.ndarray, tokens: int, first: np.ndarray, turn: np.ndarray | None) -> Around:
    """What cells of `tokens` tokens are coded around. strip, first: [cells], strip and position of the first token.

    Products with a turning centre are exact for float16 and bfloat16 pools, and their difference is rounded once.
    """
    still = np.broadcast_to(stats.centre[strip][:, None], (len(strip), tokens, stats.centre.shape[1]))
    if not stats.turns.any():
        return Around(still, stats.levels)
    if turn is None:
        raise ValueError("a strip's centre turns with the position; give turn=turn_of(positions, dim, theta)")
    angles, turns = turn[first[:, None] + np.arange(tokens)], stats.turns[strip]
    centre = np.where(turns[:, None, None], turned(still, angles), still)
    return Around(centre, stats.levels, turns, angles) if stats.levels else Around(centre, 0)


def rounded(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(x)).to(dtype).float().numpy()

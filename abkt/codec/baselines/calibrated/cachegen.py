"""CacheGen with the width of its bins calibrated for each (layer, K or V), in place of thirds of the layers.

The paper (SIGCOMM 2024) gives earlier layers finer bins because it found them more sensitive. Here sensitivity is measured: with errors of
width**2 / 12 a value, the loss (Fisher information times error) of a bit saved is the same everywhere if width**2 * information is.
"""

from __future__ import annotations

import torch

from abkt.codec.baselines.cachegen import FACTORS, CacheGenCodec, anchored
from abkt.codec.baselines.calibrated.kv import CalibrationKV

MEAN = FACTORS[1] * 0.5**0.5  # geometric mean of the factors of K and V in the middle third


def fit(calibration: CalibrationKV, coarseness: float = 1.0, name: str = "") -> CacheGenCodec:
    """CacheGen whose factors have the geometric mean of the published ones, times coarseness."""
    group = CacheGenCodec().group
    squares = torch.stack([anchored(x, group)[1].square().mean((2, 3, 4)) for x in calibration.kv]).mean(0)
    width = calibration.of_heads.mean(2).rsqrt() / squares.clamp_min(1e-30).sqrt()  # over the deltas' root mean square
    width *= MEAN / width.log().mean().exp()
    factors = tuple((float(k), float(v)) for k, v in width)
    return CacheGenCodec(name or f"cachegen-w{coarseness:g}", coarseness=coarseness, factors=factors)

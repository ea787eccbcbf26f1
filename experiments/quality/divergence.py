"""The laws by which a calibration predicts the divergence of answers from the squared error of the fixed and the entropy coder.

They are fitted on prompts that chose among the candidates but are in no statistics, so a stream states a divergence that was measured, and
distortions of all coders can be compared. Prompts differ: the law's spread says by how much.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from abkt.codec.calibration import Calibration
from abkt.codec.codec import Codec
from abkt.codec.divergence import DivergenceLaw
from abkt.policy.view import CoderName
from experiments.quality.measure import Bench
from experiments.quality.methods import Cuts, seen
from experiments.quality.samples import QualitySample

CODERS: tuple[CoderName, ...] = ("fixed", "entropy")
BITS = (1.0, 1.5, 2.0, 3.0, 4.0)  # rates at which they are measured
LOWEST, HIGHEST = 1e-5, 2.0  # divergences outside of which a point says nothing: noise, or answers that are lost anyway
LEAST_POINTS = 3

log = logging.getLogger("abkt.quality")


def laws(bench: Bench, codec: Codec, calibration: Calibration, samples: Sequence[QualitySample]) -> dict[str, DivergenceLaw]:
    """The law of each coder, with the weights of this calibration; none where one of them cannot be fitted.

    codec: gives layout, tiles and rotary base. samples: prompts that the calibration's statistics did not see.
    """
    own = Codec(codec.layout, tile_tokens=codec.tile_tokens, rope_theta=codec.rope_theta, calibration=calibration)
    points: dict[CoderName, list[tuple[float, float]]] = {coder: [] for coder in CODERS}
    for sample in samples:
        held = bench.prefill(sample)
        reference = bench.reference(sample, held)
        for coder in CODERS:
            for point in Cuts(coder, own, seen(calibration), coder=coder, rates=BITS).points(held):
                points[coder].append((point.distortion, bench.divergence(sample, point.put, reference)))
    found = {coder: fit(*zip(*of, strict=True)) if of else None for coder, of in points.items()}
    known = {str(coder): law for coder, law in found.items() if law is not None}
    if len(known) < len(CODERS):
        log.warning("no law predicts the divergence of %s: streams state a squared error, and profiles leave klt out", calibration.model)
        return {}
    return known


def fit(distortion: Sequence[float], kl: Sequence[float]) -> DivergenceLaw | None:
    """The power law through measured points, by least squares of the logarithms; None with too few points, or if it would not rise."""
    d, k = np.array(distortion), np.array(kl)
    kept = (d > 0) & (k > LOWEST) & (k < HIGHEST)
    x, y = np.log(d[kept]), np.log(k[kept])
    if kept.sum() < LEAST_POINTS or np.ptp(x) < 1e-3:
        return None
    exponent, scale = np.polyfit(x, y, 1)
    if exponent <= 0:
        return None
    return DivergenceLaw(float(np.exp(scale)), float(exponent), float(np.exp(np.std(y - exponent * x - scale))))

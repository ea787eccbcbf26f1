"""Quality of compressed KV: codecs and rates on a model, calibration, and the gates that our codec must reach.

Used by `abkt quality`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from experiments.quality.measure import Bench, QualityOutcome
    from experiments.quality.methods import Method, RatePoint
    from experiments.quality.samples import QualitySample

__all__ = ["Bench", "Method", "QualityOutcome", "QualitySample", "RatePoint"]
__getattr__ = exporter(
    __name__, {"Bench": "measure", "Method": "methods", "QualityOutcome": "measure", "QualitySample": "samples", "RatePoint": "methods"}
)

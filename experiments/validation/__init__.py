"""Validation of the simulator: it predicts runs that it was not calibrated on, and the predictions are compared with the runs.

Used by `abkt validate`; the notebooks read its scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from experiments.validation.clusters import Clusters
    from experiments.validation.condition import Condition
    from experiments.validation.folder import ValidationCase, load_case
    from experiments.validation.scores import regrets

__all__ = ["Clusters", "Condition", "ValidationCase", "load_case", "regrets"]
__getattr__ = exporter(
    __name__, {"Clusters": "clusters", "Condition": "condition", "ValidationCase": "folder", "load_case": "folder", "regrets": "scores"}
)

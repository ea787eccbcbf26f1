"""Published experiments, repeated: the same question, our figure, their ratio, and why they differ.

Used by `abkt reproduce`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from experiments.reproduction.runs import Experiments

__all__ = ["Experiments"]
__getattr__ = exporter(__name__, {"Experiments": "runs"})

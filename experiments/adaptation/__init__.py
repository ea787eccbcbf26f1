"""The gain of adapting to a link: policies are compared on the same requests, within the same bounds of distortion.

Used by `abkt adaptation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from experiments.adaptation.comparison import Comparison, Contest, compare_within_bounds
    from experiments.adaptation.outcome import Margin
    from experiments.adaptation.rivals import Aim, Bounds
    from experiments.adaptation.scores import Score

__all__ = ["Aim", "Bounds", "Comparison", "Contest", "Margin", "Score", "compare_within_bounds"]
__getattr__ = exporter(
    __name__,
    {
        "Aim": "rivals",
        "Bounds": "rivals",
        "Comparison": "comparison",
        "Contest": "comparison",
        "Margin": "outcome",
        "Score": "scores",
        "compare_within_bounds": "comparison",
    },
)

"""The divergence of a model's answers that a stream of the fixed or the entropy coder predicts, from its weighted squared error.

A klt stream states its divergence by itself (klt/basis.py). For the other two coders a calibration holds a power law that was fitted on
prompts which its statistics did not see. So all streams of a calibrated model state the same quantity, and a policy can compare them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DivergenceLaw:
    """divergence = scale * distortion ** exponent, in nats a token.

    Parameters
    ----------
    scale, exponent : above 0.
    spread : factor by which a measured divergence lies above or below the law (one standard deviation).

    Raises
    ------
    ValueError : for numbers that are not finite or not above 0.
    """

    scale: float
    exponent: float
    spread: float = 1.0

    def __post_init__(self) -> None:
        numbers = (self.scale, self.exponent, self.spread)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise ValueError(f"divergence law: scale, exponent and spread are {numbers}; they must be finite and above 0")

    def of(self, distortion: float) -> float:
        return self.scale * max(0.0, distortion) ** self.exponent

    def words(self) -> str:
        return f"{self.scale:.4g} * distortion ** {self.exponent:.3f} (spread {self.spread:.2f})"

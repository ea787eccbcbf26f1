"""Facts about a model that are measured once, before any request: how far predicted importance can be trusted, how much an error in each
head changes the model's answers, and which heads are coded as differences of neighbouring tokens.

A cell's weight is sensitivity[layer, kind, kv_head] * importance**gamma. Sensitivity is the divergence of the model's answers for a unit of
relative squared error in that head. gamma lies between 0 (importance is ignored) and 1 (importance is trusted fully). Both are measured,
because importance that is assumed rather than measured can do harm: in ABKT's first implementation the perplexity was 8.32 with it, and
7.76 without it at equal size.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from abkt.codec.entropy.haar import MOST_LEVELS
from abkt.spec import KVLayout

VERSION = 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """The measured facts about one model.

    Parameters
    ----------
    model : name of the model.
    gamma : exponent of importance, in [0, 1].
    sensitivity : [layers, kinds, kv_heads] float64, above 0; only ratios between heads matter.
    levels : [layers, kinds, kv_heads] uint8, how many levels of differences along tokens (entropy/haar.py) the entropy coder uses.
    about : how the calibration was made, in words.

    Raises
    ------
    ValueError : for shapes that differ, and for values out of range.
    """

    model: str
    gamma: float
    sensitivity: np.ndarray
    levels: np.ndarray
    about: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sensitivity.ndim != 3 or self.sensitivity.shape != self.levels.shape:
            raise ValueError(
                f"calibration of {self.model}: sensitivity {self.sensitivity.shape} and levels {self.levels.shape} must both be "
                "[layers, kinds, kv_heads]"
            )
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"calibration of {self.model}: gamma is {self.gamma}; it lies in [0, 1]")
        if not (np.isfinite(self.sensitivity).all() and (self.sensitivity > 0).all()):
            raise ValueError(f"calibration of {self.model}: a sensitivity is not finite or not above 0")
        if self.levels.dtype != np.uint8 or self.levels.max(initial=0) > MOST_LEVELS:
            raise ValueError(f"calibration of {self.model}: levels must be uint8, 0 to {MOST_LEVELS}")

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name what the codec uses of it: gamma, sensitivity and levels. Curves carry it."""
        parts = (np.float64(self.gamma), np.array(self.sensitivity.shape), self.sensitivity.astype("<f8"), self.levels)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]

    def check(self, layout: KVLayout) -> None:
        """Raises ValueError, with both shapes, unless the calibration fits KV of this layout."""
        model = layout.model
        needed = (model.layers, model.kv_kinds, model.kv_heads)
        if self.sensitivity.shape != needed:
            raise ValueError(f"calibration of {self.model} has (layers, kinds, kv_heads) = {self.sensitivity.shape}; the pool has {needed}")

    def save(self, path: Path) -> None:
        """Write it as JSON. The file is replaced in one step, so that it is never half written."""
        body = {
            "version": VERSION, "model": self.model, "gamma": self.gamma, "sensitivity": self.sensitivity.tolist(),
            "levels": self.levels.tolist(), "about": self.about,
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(body, indent=1) + "\n")
        part.replace(path)


def load(path: Path) -> Calibration:
    """Read a calibration. Raises ValueError, in one line, if the file is missing, not a calibration, of another version, or out of
    range."""
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"calibration {path} does not exist") from None
    except ValueError as error:  # bad JSON, or a bad encoding of characters
        raise ValueError(f"calibration {path} is not JSON: {error}") from None
    if not isinstance(body, dict) or body.get("version") != VERSION:
        found = body.get("version") if isinstance(body, dict) else None
        raise ValueError(f"calibration {path} has version {found}; version {VERSION} can be read")
    try:
        levels = np.array(body["levels"], dtype=np.int64)
        if levels.size and not 0 <= levels.min() <= levels.max() <= MOST_LEVELS:
            raise ValueError(f"levels must be 0 to {MOST_LEVELS}")
        sensitivity = np.array(body["sensitivity"], dtype=np.float64)
        return Calibration(str(body["model"]), float(body["gamma"]), sensitivity, levels.astype(np.uint8), dict(body.get("about", {})))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"calibration {path} is damaged: {error}") from None

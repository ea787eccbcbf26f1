"""A Profile: what was measured, on what, over which range, and how well the fits hold. Read by the model, written by `abkt profile`.

Costs are linear in named features (units in the name of what they give: seconds). Stages that the study fits:
  prefill          tokens, tokens*tokens     one prompt of `tokens`, one pass
  decode           batch, context            one iteration of `batch` requests with `context` tokens of KV in all
  encode/raw, encode/2, encode/4, encode/8   tokens    by the depth encoded, in bits; raw: copies out of the pool
  expand/raw, expand/2, expand/4, expand/8   tokens    into the pool
  encode/lossless, expand/lossless                 tokens    the lossless mode; a profile may do without them, and then has no such mode
  encode/entropy, expand/entropy             tokens    the entropy form at full depth; optional too
  transport        calls, bytes              one transfer on the unpaced link
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from abkt.policy.view import Curve
from abkt.spec import ModelSpec

SCHEMA_VERSION = 2  # 2: the mode and tables called exact became lossless
REWEIGHTINGS = 4


@dataclass(frozen=True)
class Fit:
    """seconds = sum of coefficient x feature; a feature is "1", a product of variables such as "tokens*tokens", or what a variable has
    beyond a knot, such as "batch>32" for max(0, batch - 32): the sum is then linear in pieces.

    residual: relative root-mean-square error over the samples. low, high: the measured range of each variable.
    """

    features: tuple[str, ...]
    coefficients: tuple[float, ...]
    low: dict[str, float]
    high: dict[str, float]
    residual: float
    samples: int

    def __post_init__(self) -> None:
        if len(self.features) != len(self.coefficients):
            raise ValueError(f"fit with {len(self.features)} features has {len(self.coefficients)} coefficients")
        if not all(math.isfinite(c) for c in self.coefficients):
            raise ValueError(f"fit of {self.features} has a coefficient that is not finite")

    def seconds(self, **variables: float) -> float:
        return sum(c * _feature(f, variables) for f, c in zip(self.features, self.coefficients, strict=True))

    def covers(self, **variables: float) -> bool:
        """False where a variable lies outside what was measured: the result is then an extrapolation."""
        return all(self.low[name] <= value <= self.high[name] for name, value in variables.items() if name in self.low)

    @cached_property
    def by_feature(self) -> dict[str, float]:
        return dict(zip(self.features, self.coefficients, strict=True))


@dataclass(frozen=True)
class RateCurve:
    """Curves of one measured prompt, bytes relative to its raw bytes: what the model draws from."""

    tokens: int
    slope: Curve
    uniform: Curve


@dataclass(frozen=True)
class Profile:
    """fingerprint: the machine and versions measured. source: measured | published | roofline, and whence. lossless_share: bytes of a
    lossless transfer by raw bytes; 0: not measured. entropy_share: bytes of the entropy coder by those of the fixed one at equal
    distortion; 0: not measured."""

    model: ModelSpec
    fits: dict[str, Fit]
    curves: tuple[RateCurve, ...]
    fingerprint: dict[str, str] = field(default_factory=dict)
    source: str = "measured"
    created: str = ""
    schema_version: int = SCHEMA_VERSION
    lossless_share: float = 0.0
    entropy_share: float = 0.0

    def fit(self, stage: str) -> Fit:
        if stage not in self.fits:
            raise ValueError(f"the profile has no table {stage}; it has {', '.join(sorted(self.fits))}: run `abkt profile` again")
        return self.fits[stage]

    def has_codec(self, name: str) -> bool:
        """Whether both tables of a codec (raw, lossless, entropy or a depth in bits) were measured."""
        return {f"encode/{name}", f"expand/{name}"} <= self.fits.keys()

    def codec_s(self, name: str, tokens: int) -> tuple[float, float]:
        """Seconds that encoding and expanding `tokens` tokens take with this codec. Raises ValueError where it was not measured."""
        return self.fit(f"encode/{name}").seconds(tokens=tokens), self.fit(f"expand/{name}").seconds(tokens=tokens)

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1))
        part.replace(path)


def load(path: Path) -> Profile:
    """Raises ValueError, one line, where the file is no profile of this schema version."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"profile {path} does not exist; make one with `abkt profile out=DIR`") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"profile {path} cannot be read: {error}") from None
    try:
        return parse(data)
    except ValueError as error:
        raise ValueError(f"profile {path}: {error}") from None


def parse(data: object) -> Profile:
    """A Profile from its JSON form. Raises ValueError, one line, where it is damaged or of another schema version."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(data, dict) or version != SCHEMA_VERSION:
        raise ValueError(f"schema version is {version}, this code reads {SCHEMA_VERSION}; run `abkt profile` again")
    try:
        return Profile(
            model=ModelSpec(**data["model"]),
            fits={
                stage: Fit(**{**fit, "features": tuple(fit["features"]), "coefficients": tuple(fit["coefficients"])})
                for stage, fit in data["fits"].items()
            },
            curves=tuple(RateCurve(c["tokens"], parse_curve(c["slope"]), parse_curve(c["uniform"])) for c in data["curves"]),
            fingerprint=data["fingerprint"],
            source=data["source"],
            created=data["created"],
            lossless_share=data.get("lossless_share", 0.0),
            entropy_share=data.get("entropy_share", 0.0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is damaged: {error!r}; run `abkt profile` again") from None


def parse_curve(data: Mapping[str, Sequence[float]]) -> Curve:
    return Curve(tuple(data["bytes"]), tuple(data["distortion"]), tuple(data["bits"]))


def fit(features: Sequence[str], samples: Sequence[tuple[Mapping[str, float], float]]) -> Fit:
    """Least squares of relative error with coefficients >= 0 (a cost cannot be negative: drop the most negative and fit again).

    The error is relative to the fit, not to the sample, by reweighting: relative to the sample, noise would pull the fit below the
    mean. samples: (variables, seconds). Raises ValueError with fewer samples than features.
    """
    if len(samples) < len(features):
        raise ValueError(f"{len(samples)} samples cannot fit the {len(features)} features {', '.join(features)}")
    seconds = np.array([s for _, s in samples])
    design = np.array([[_feature(f, v) for f in features] for v, _ in samples])
    scale = seconds
    for _ in range(REWEIGHTINGS):
        coefficients = _non_negative(design / scale[:, None], seconds / scale)
        scale = np.maximum(design @ coefficients, 1e-3 * seconds)
    names = {name for variables, _ in samples for name in variables}
    return Fit(
        features=tuple(features),
        coefficients=tuple(float(c) for c in coefficients),
        low={name: min(v[name] for v, _ in samples) for name in names},
        high={name: max(v[name] for v, _ in samples) for name in names},
        residual=float(np.sqrt(np.mean((seconds / scale - 1.0) ** 2))),
        samples=len(samples),
    )


def _non_negative(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    kept, coefficients = list(range(design.shape[1])), np.zeros(design.shape[1])
    while kept:
        solution = np.linalg.lstsq(design[:, kept], target, rcond=None)[0]
        if solution.min() >= 0:
            coefficients[kept] = solution
            break
        kept.pop(int(solution.argmin()))
    return coefficients


def _feature(feature: str, variables: Mapping[str, float]) -> float:
    if feature == "1":
        return 1.0
    name, above, knot = feature.partition(">")
    if above:
        return max(0.0, variables[name] - float(knot))
    return math.prod(variables[name] for name in feature.split("*"))

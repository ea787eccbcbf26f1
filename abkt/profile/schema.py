"""A Profile: what was measured, on which machine, over which range, and how well the fits hold. `abkt profile` writes it; the simulator and
real workers read it.

Each stage's seconds are a linear function of named features:
  prefill          tokens, tokens*tokens     one prompt of `tokens` tokens in one pass
  handover         (a constant)              from when a worker is free and a prompt has arrived until its pass begins; optional: else 0
  first_token      (a constant)              what passes before that in the front end of an engine; optional: else 0
  decode           batch, context            one iteration of `batch` requests with `context` tokens of KV in total
  encode/raw, encode/2, encode/4, encode/8   tokens    one row for each encoded depth in bits; raw: copies out of the pool
  expand/raw, expand/2, expand/4, expand/8   tokens    into the pool
  encode/lossless, expand/lossless           tokens    the lossless mode; optional: without them the mode is not offered
  encode/entropy, expand/entropy             tokens    the entropy coder at full depth; optional
  encode/klt, expand/klt                     tokens    the klt coder: encoded at full depth, and expanded as cut at embedded's target;
                                                       optional, needs a calibration that predicts divergence
  transport        calls, bytes              one transfer over the unpaced link
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from abkt.policy.view import Curve
from abkt.spec import ModelSpec

SCHEMA_VERSION = 2  # 2: the mode and tables called exact became lossless
REWEIGHTINGS = 4
DEPTHS_BITS = (2, 4, 8)  # depths of the fixed coder that are measured
FEATURES = {
    "prefill": ("1", "tokens", "tokens*tokens"),
    "handover": ("1",),
    "first_token": ("1",),
    "decode": ("1", "batch", "context"),
    "transport": ("calls", "bytes"),
}
CODEC_FEATURES = ("1", "tokens")  # features of every other stage
Sample = tuple[Mapping[str, float], float]  # variables, seconds


@dataclass(frozen=True)
class Fit:
    """seconds = sum of coefficient x feature.

    A feature is "1", a product of variables such as "tokens*tokens", or the part of a variable beyond a knot, such as "batch>32" for
    max(0, batch - 32); with knots the sum is piecewise linear. residual: relative root-mean-square error over the samples. low, high: the
    measured range of each variable.
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
        """Whether all variables are in the measured range; otherwise the result is an extrapolation."""
        return all(self.low[name] <= value <= self.high[name] for name, value in variables.items() if name in self.low)

    @cached_property
    def by_feature(self) -> dict[str, float]:
        return dict(zip(self.features, self.coefficients, strict=True))


@dataclass(frozen=True)
class RateCurve:
    """Rate-distortion curves of one measured prompt; its bytes are relative to its raw bytes. The simulator draws one for each request.

    calibration: digest of the calibration whose weights are in the distortion (abkt.codec.calibration); empty: none; None: unknown, as in
    files from before this was kept. nats: distortion is the divergence of the model's answers in nats a token, and not the relative squared
    error. klt: the curve of the klt coder for the same prompt, in the same unit; None: not measured.

    Raises ValueError for a klt curve without nats, since its distortion is comparable with no other unit.
    """

    tokens: int
    slope: Curve
    uniform: Curve
    calibration: str | None = None
    nats: bool = False
    klt: Curve | None = None

    def __post_init__(self) -> None:
        if self.klt is not None and not self.nats:
            raise ValueError("a rate curve with a klt curve needs its distortions in nats a token (nats true)")


@dataclass(frozen=True)
class Profile:
    """The costs of a model on a machine.

    Parameters
    ----------
    model : the shapes of the model.
    fits : stage -> fit of its seconds, for the stages in this module's docstring.
    curves : rate-distortion curves of measured prompts.
    fingerprint : the machine and the versions that were measured.
    source : `measured`, `published` (fits of others' kernel tables) or `roofline` (from a data sheet).
    created : time of the measurement, in ISO format.
    lossless_share : bytes of a lossless transfer relative to raw bytes; 0: not measured.
    entropy_share : bytes of the entropy coder relative to the fixed coder at equal distortion; 0: not measured.
    """

    model: ModelSpec
    fits: dict[str, Fit]
    curves: tuple[RateCurve, ...]
    fingerprint: dict[str, str] = field(default_factory=dict)
    source: str = "measured"
    created: str = ""
    schema_version: int = SCHEMA_VERSION
    lossless_share: float = 0.0
    entropy_share: float = 0.0

    def __post_init__(self) -> None:
        if len({(c.nats, c.klt is None) for c in self.curves}) > 1:
            raise ValueError("some rate curves are in nats or have a klt curve, and others are not; all must be of one calibration")

    def fit(self, stage: str) -> Fit:
        """The fit of a stage. Raises ValueError, one line, if it was not measured."""
        if stage not in self.fits:
            raise ValueError(f"the profile has no table {stage}; it has {', '.join(sorted(self.fits))}: run `abkt profile` again")
        return self.fits[stage]

    def has_codec(self, name: str) -> bool:
        """Whether encoding and expanding of a codec (raw, lossless, entropy, klt or a depth in bits) were measured."""
        return {f"encode/{name}", f"expand/{name}"} <= self.fits.keys()

    def codec_s(self, name: str, tokens: int) -> tuple[float, float]:
        """(seconds of encoding, seconds of expanding) for `tokens` tokens. Raises ValueError if the codec was not measured."""
        return self.fit(f"encode/{name}").seconds(tokens=tokens), self.fit(f"expand/{name}").seconds(tokens=tokens)

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1))
        part.replace(path)


def load(path: Path) -> Profile:
    """Read profile.json. Raises ValueError, one line, if it is missing, damaged or of another schema version."""
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
    """A Profile from parsed JSON. Raises ValueError, one line, if it is damaged or of another schema version."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(data, dict) or version != SCHEMA_VERSION:
        raise ValueError(f"schema version is {version}, this code reads {SCHEMA_VERSION}; run `abkt profile` again")
    try:
        model: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data["model"].items()}
        return Profile(
            model=ModelSpec(**model),
            fits={
                stage: Fit(**{**fit, "features": tuple(fit["features"]), "coefficients": tuple(fit["coefficients"])})
                for stage, fit in data["fits"].items()
            },
            curves=tuple(map(parse_rate_curve, data["curves"])),
            fingerprint=data["fingerprint"],
            source=data["source"],
            created=data["created"],
            lossless_share=data.get("lossless_share", 0.0),
            entropy_share=data.get("entropy_share", 0.0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is damaged: {error!r}; run `abkt profile` again") from None


def parse_rate_curve(data: Mapping[str, Any]) -> RateCurve:
    """A RateCurve from parsed JSON. Raises KeyError, TypeError or ValueError if it is damaged."""
    calibration = data.get("calibration")
    if not (calibration is None or isinstance(calibration, str)):
        raise ValueError(f"the calibration of a curve is {calibration!r}; it must be a digest, empty or null")
    nats, klt = data.get("nats", False), data.get("klt")
    if not isinstance(nats, bool):
        raise ValueError(f"nats of a curve is {nats!r}; it must be true or false")
    curves = parse_curve(data["slope"]), parse_curve(data["uniform"])
    return RateCurve(int(data["tokens"]), *curves, calibration, nats, None if klt is None else parse_curve(klt))


def parse_curve(data: Mapping[str, Sequence[float]]) -> Curve:
    return Curve(tuple(data["bytes"]), tuple(data["distortion"]), tuple(data["bits"]))


def fit(features: Sequence[str], samples: Sequence[Sample]) -> Fit:
    """Least squares of the relative error, with coefficients >= 0, since a cost cannot be negative.

    If a coefficient comes out negative, the most negative one is dropped and the rest is fitted again. The error is relative to the fitted
    value, which needs reweighting; if it were relative to the samples, noise would pull the fit below their mean. Raises ValueError with
    fewer samples than features.
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


def fit_stages(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Fit]:
    """The fit of each stage, with the features that this module's docstring names."""
    return {stage: fit(FEATURES.get(stage, CODEC_FEATURES), taken) for stage, taken in samples.items()}


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

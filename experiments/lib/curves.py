"""Measured curves: distortion by bytes, and the quality of a model's answers by distortion.

They stand for KV that cannot be computed on this machine, such as the KV of large models. A *library* is a file with both kinds, of one
model with one calibration, whose digest they carry; its distortions are divergences in nats a token (experiments.quality.curves makes it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from abkt.profile.schema import RateCurve, parse_rate_curve
from experiments.lib.paths import data_path
from experiments.lib.results import write_json, write_text

T = TypeVar("T")
QUANTILES = 2000  # quantiles that stand for a larger number of transfers


LIBRARIES = ("smollm2", "gemma3")
"""Models whose library may come with ABKT, in data/curves."""


def load_curves(path: Path) -> tuple[RateCurve, ...]:
    """Rate curves from a file or a library. Raises ValueError, one line, where it is missing, empty or not a list of curves."""
    return _load(path, "rate curves", "measure them with `abkt profile` or give curves=FILE", parse_rate_curve, "rates")


def save_curves(curves: tuple[RateCurve, ...], path: Path) -> None:
    write_json(path, [asdict(curve) for curve in curves])


@dataclass(frozen=True)
class QualityCurve:
    """One prompt of a kind, coded by one method, from coarse to fine. bytes: share of the raw bytes. distortion: as the codec measures it.
    rise: rise of the negative log-likelihood of the continuation, in nats per token. kl: mean divergence of the logits. calibration: as in
    RateCurve."""

    kind: str
    method: str
    tokens: int
    bytes: tuple[float, ...]
    distortion: tuple[float, ...]
    rise: tuple[float, ...]
    kl: tuple[float, ...]
    calibration: str | None = None

    def __post_init__(self) -> None:
        if not len(self.bytes) == len(self.distortion) == len(self.rise) == len(self.kl) >= 1:
            raise ValueError("a curve of quality needs as many bytes as distortions, rises and divergences, and at least one point")


def load_quality(path: Path) -> tuple[QualityCurve, ...]:
    """Quality curves from a file or a library. Raises ValueError, one line, where it is missing, empty or not a list of such curves."""
    return _load(path, "quality curves", "measure them with `abkt quality`", _quality_curve, "quality")


def _load(path: Path, what: str, remedy: str, parse: Callable[[Any], T], part: str) -> tuple[T, ...]:
    """The rows of a JSON list, or of one part of a library, each parsed. Raises ValueError, one line, where the file is missing, empty or
    damaged."""
    try:
        whole = json.loads(path.read_text())
        found = tuple(map(parse, whole[part] if isinstance(whole, dict) else whole))
    except FileNotFoundError:
        raise ValueError(f"{what} {path} do not exist; {remedy}") from None
    except (OSError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{what} {path} cannot be read: {error!r}") from None
    if not found:
        raise ValueError(f"{what} {path} are an empty list")
    return found


def _quality_curve(row: Any) -> QualityCurve:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return QualityCurve(**values)


def save_library(rates: Sequence[RateCurve], quality: Sequence[QualityCurve], path: Path) -> None:
    """Write a library, one curve on each line."""
    rows = {"rates": [asdict(curve) for curve in rates], "quality": [asdict(curve) for curve in quality]}
    parts = (f'"{name}": [\n' + ",\n".join(json.dumps(row, allow_nan=False) for row in of) + "\n]" for name, of in rows.items())
    write_text(path, "{" + ",\n".join(parts) + "}\n")


def save_quality(curves: Sequence[QualityCurve], path: Path) -> None:
    """Write quality curves, one on each line."""
    lines = ",\n".join(json.dumps(asdict(curve), allow_nan=False) for curve in curves)
    write_text(path, f"[\n{lines}\n]\n")


def expected_rise(curves: Sequence[QualityCurve], distortion: np.ndarray) -> np.ndarray:
    """Mean over curves of the rise at each distortion.

    Between two points of a curve it is linear in the logarithm of the distortion, below the finest point it is proportional to the
    distortion, and above the coarsest point it stays at that point's rise.
    """
    at = np.asarray(distortion, dtype=np.float64)
    found = np.zeros_like(at)
    for curve in curves:
        known, rise = np.maximum(np.array(curve.distortion), 1e-12)[::-1], np.array(curve.rise)[::-1]
        within = np.interp(np.log(np.maximum(at, 1e-12)), np.log(known), rise)
        found += np.where(at < known[0], rise[0] * at / known[0], within)
    return found / len(curves)


def quality_of(distortion: Sequence[float] | np.ndarray, curves: Sequence[QualityCurve]) -> dict[str, dict[str, float]]:
    """The expected effect of these distortions on answers, by kind of prompt: mean and p99 of the rise, in nats per token.

    Many transfers are represented by 2,000 quantiles. Empty if there are none.
    """
    at = np.asarray(distortion, dtype=np.float64)
    if len(at) > QUANTILES:
        at = np.quantile(at, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    kinds = dict.fromkeys(curve.kind for curve in curves) if len(at) else {}
    rises = {kind: expected_rise([curve for curve in curves if curve.kind == kind], at) for kind in kinds}
    return {kind: {"mean": float(rise.mean()), "p99": float(np.quantile(rise, 0.99))} for kind, rise in rises.items()}


def stored_quality() -> tuple[QualityCurve, ...]:
    """The quality curves that come with ABKT, of our codec. They were measured on the probe with its calibrated weights."""
    return tuple(curve for curve in load_quality(data_path("curves/quality.json")) if curve.method == "ours")


def known_quality(path: Path | None = None) -> tuple[QualityCurve, ...]:
    """The quality curves that come with ABKT, and those of the library `path` if it is one."""
    stored = [file for name in LIBRARIES if (file := data_path(f"curves/{name}.json")).is_file()]
    mine = [path] if path is not None and path not in stored and isinstance(json.loads(path.read_text()), dict) else []
    return (*stored_quality(), *(curve for file in (*stored, *mine) for curve in load_quality(file)))


def expected_kl(distortion: Sequence[float] | np.ndarray, rates: Sequence[RateCurve]) -> dict[str, float] | None:
    """Mean and p99 of the expected divergence of answers (KL), in nats a token; None if the rate curves have another distortion."""
    at = np.asarray(distortion, dtype=np.float64)
    if not rates or not len(at) or not all(curve.nats for curve in rates):
        return None
    return {"mean": float(at.mean()), "p99": float(np.quantile(at, 0.99))}


def expected_quality(
    distortion: Sequence[float] | np.ndarray, rates: Sequence[RateCurve], curves: Sequence[QualityCurve]
) -> tuple[dict[str, dict[str, float]] | None, str]:
    """As quality_of, and why it cannot be told, which is empty if it can.

    A distortion is weighted by the calibration, so two with different calibrations are different quantities.

    Parameters
    ----------
    distortion : of each transfer.
    rates : the rate curves that it was drawn from.
    curves : quality curves, of any calibrations.
    """
    ours, theirs = {curve.calibration for curve in rates}, {curve.calibration for curve in curves}
    if len(ours) == 1 and None not in ours and ours <= theirs:
        return quality_of(distortion, [curve for curve in curves if curve.calibration in ours]), ""
    return None, (
        f"expected_rise_in_nll is not given: the rate curves were measured with calibration {_named(ours)}, "
        f"the quality curves with {_named(theirs)}"
    )


def _named(calibrations: Set[str | None]) -> str:
    """Digests in words: `unknown` for None or no curves at all, `none` for the empty digest."""
    return ", ".join(sorted("unknown" if name is None else name or "none" for name in calibrations)) or "unknown"

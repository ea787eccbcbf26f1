"""The library of measured rate-distortion curves that stands in for KV nobody here can compute (big models on big GPUs)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from abkt.profile.schema import RateCurve, parse_curve
from experiments.results import write_json


def load_curves(path: Path) -> tuple[RateCurve, ...]:
    """Raises ValueError, one line, where the file is missing, empty or no list of curves."""
    try:
        found = tuple(RateCurve(int(c["tokens"]), parse_curve(c["slope"]), parse_curve(c["uniform"])) for c in json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(f"rate curves {path} do not exist; measure them with `abkt profile` or give curves=FILE") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"rate curves {path} cannot be read: {error!r}") from None
    if not found:
        raise ValueError(f"rate curves {path} are an empty list")
    return found


def save_curves(curves: tuple[RateCurve, ...], path: Path) -> None:
    write_json(path, [asdict(curve) for curve in curves])

"""A library of curves for the simulator from a run of `abkt quality` on a real model: divergence of answers by bytes, coder by coder.

    python -m experiments.quality.curves DIR out=FILE [calibration=FILE] [fixed=ours] [uniform=uniform] [klt=klt]

The run must have measured the fixed coder in slope order and in uniform order, and klt, on the same prompts, with one calibration: the one
in DIR, or `calibration=`. `abkt simulate curves=FILE` draws one prompt's curves for each request. The slope and klt curves are
interpolated, the logarithm of the divergence against that of the bytes, as an embedded stream has far more cuts than a run measures; they
end where the measured points end. Where a finer cut was measured as worse than a coarser one, by chance, the coarser one's divergence
holds.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from abkt.codec.calibration import load
from abkt.policy.view import Curve
from abkt.profile.schema import RateCurve
from experiments.lib.curves import QualityCurve, save_library
from experiments.quality.gates import library
from experiments.quality.table import LEAST_KL, read

POINTS = 64
FILE = "calibration.safetensors"
DIGITS = 5  # significant digits in the file


def rate_curves(
    frame: pd.DataFrame, calibration: str, fixed: str = "ours", uniform: str = "uniform", klt: str = "klt"
) -> tuple[RateCurve, ...]:
    """The rate curves of each prompt on which all three methods were measured, in nats. frame: as `table.read` gives it. calibration: its
    digest. Raises ValueError, one line, where there is no such prompt."""
    found = []
    for _, group in frame.groupby("sample", sort=True):
        of = {name: group[group.method == name].sort_values("wire_bytes") for name in (fixed, uniform, klt)}
        if all(len(rows) >= 2 for rows in of.values()):
            curves = [_curve(of[fixed], POINTS), _curve(of[uniform], 0), _curve(of[klt], POINTS)]
            found.append(RateCurve(int(group.tokens.iloc[0]), curves[0], curves[1], calibration, True, curves[2]))
    if not found:
        there = ", ".join(dict.fromkeys(frame.method))
        raise ValueError(f"no prompt has two rates of each of {fixed}, {uniform} and {klt}; the run has {there}")
    return tuple(found)


def quality_curves(frame: pd.DataFrame, calibration: str, methods: tuple[str, ...]) -> list[QualityCurve]:
    """The rise of the likelihood by divergence, which stands for the distortion: one curve for each prompt and coder."""
    found = []
    for curve in library(frame, calibration, methods):
        order = np.argsort(curve.kl)[::-1]
        share, rise, kl = (tuple(values[i] for i in order) for values in (curve.bytes, curve.rise, curve.kl))
        found.append(replace(curve, bytes=share, distortion=kl, rise=rise, kl=kl))
    return found


def _curve(rows: pd.DataFrame, points: int) -> Curve:
    """The curve through a method's points on one prompt. points: how many to interpolate; 0: those that were measured."""
    share, kl = rows.of_raw.to_numpy(), np.minimum.accumulate(np.maximum(rows.kl.to_numpy(), LEAST_KL))
    bits = pd.to_numeric(rows.rate).to_numpy()
    if bits.max() < 1:  # klt's rates are shares of the raw bytes
        bits = 16 * share
    at = np.geomspace(share[0], share[-1], points) if points else share
    x = np.log(share)
    values = at, np.exp(np.interp(np.log(at), x, np.log(kl))), np.interp(np.log(at), x, bits)
    return Curve(*(tuple(float(f"{v:.{DIGITS}g}") for v in of) for of in values))


def main(arguments: list[str]) -> None:
    given = dict(argument.split("=", 1) for argument in arguments[1:] if "=" in argument)
    if not arguments or "=" in arguments[0] or "out" not in given or len(given) < len(arguments) - 1:
        raise ValueError("give the folder of a run and a file: python -m experiments.quality.curves DIR out=FILE")
    place, out, file = Path(arguments[0]), Path(given.pop("out")), given.pop("calibration", "")
    if unknown := given.keys() - {"fixed", "uniform", "klt"}:
        raise ValueError(f"{min(unknown)}= is unknown; there are out, calibration, fixed, uniform and klt")
    frame, digest = read(place), load(Path(file) if file else place / FILE).digest
    rates = rate_curves(frame, digest, **given)
    save_library(rates, quality_curves(frame, digest, (given.get("fixed", "ours"), given.get("klt", "klt"))), out)
    print(f"curves of {len(rates)} prompts, calibration {digest}: {out}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        print(f"curves: {error}", file=sys.stderr)
        sys.exit(2)

"""A made-up machine. Its costs have odd digits, so that events of different nodes do not fall on the same time by chance."""

from __future__ import annotations

import pytest

from abkt.policy.view import Curve
from abkt.profile.schema import Fit, Profile, RateCurve
from abkt.spec import ModelSpec

MODEL = ModelSpec("toy", layers=2, kv_heads=1, head_dim=8, max_tokens=4096)  # 64 bytes of KV a token
UNIFORM = Curve((0.02, 0.14, 0.27, 0.52), (1.0, 0.2, 0.01, 0.0001), (0.0, 2.0, 4.0, 8.0))


def slope(worse: float) -> Curve:
    """A curve with finer cuts than UNIFORM and less distortion at the same bytes. A prompt that codes badly has `worse` above 1."""
    bits = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    return Curve(tuple(0.02 + b / 16 for b in bits), tuple(min(1.0, worse * 0.7 * 4.0**-b) if b else 1.0 for b in bits), bits)


def exact(terms: dict[str, float], low: dict[str, float] | None = None, high: dict[str, float] | None = None) -> Fit:
    return Fit(tuple(terms), tuple(terms.values()), low or {}, high or {}, residual=0.0, samples=0)


FITS = {
    "prefill": exact({"1": 0.00217, "tokens": 0.000313, "tokens*tokens": 1.7e-7}, {"tokens": 1}, {"tokens": 1000}),
    "decode": exact({"1": 0.00311, "batch": 0.000271, "context": 1.37e-5}, {"batch": 1, "context": 1}, {"batch": 32, "context": 20_000}),
    "transport": exact({"calls": 0.00047, "bytes": 1.3e-7}),
    "encode/raw": exact({"tokens": 1.1e-6}),
    "expand/raw": exact({"tokens": 1.3e-6}),
    "encode/2": exact({"1": 0.00013, "tokens": 1.1e-5}),
    "encode/4": exact({"1": 0.00017, "tokens": 1.3e-5}),
    "encode/8": exact({"1": 0.00023, "tokens": 1.9e-5}),
    "expand/2": exact({"1": 0.00011, "tokens": 0.9e-5}),
    "expand/4": exact({"1": 0.00019, "tokens": 1.2e-5}),
    "expand/8": exact({"1": 0.00029, "tokens": 1.7e-5}),
}


@pytest.fixture(scope="session")
def profile() -> Profile:
    curves = tuple(RateCurve(tokens, slope(worse), UNIFORM) for tokens, worse in ((32, 1.0), (64, 0.8), (128, 1.3), (256, 0.9), (512, 1.1)))
    return Profile(MODEL, FITS, curves, source="made up")

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.view import Curve
from abkt.profile.schema import SCHEMA_VERSION, Fit, Profile, RateCurve, fit, load
from abkt.spec import ModelSpec

FEATURES = ("1", "tokens", "tokens*tokens")
terms = st.tuples(*[st.one_of(st.just(0.0), st.floats(1e-3, 1e3)) for _ in range(3)]).filter(any)
sizes = st.lists(st.floats(1, 50), min_size=4, max_size=12, unique_by=lambda size: round(size, 1))


def seconds(coefficients, tokens: float) -> float:
    return sum(c * tokens**power for power, c in enumerate(coefficients))


@given(terms, sizes)
def test_a_fit_predicts_its_samples(coefficients, tokens) -> None:
    made = fit(FEATURES, [({"tokens": t}, seconds(coefficients, t)) for t in tokens])
    assert made.residual < 1e-4
    assert made.samples == len(tokens)
    for t in tokens:
        assert made.seconds(tokens=t) == pytest.approx(seconds(coefficients, t), rel=1e-3)


@given(st.lists(st.tuples(st.floats(1, 1000), st.floats(1e-6, 10)), min_size=3, max_size=12))
def test_no_cost_is_negative_and_the_range_is_known(samples) -> None:
    made = fit(FEATURES, [({"tokens": t}, s) for t, s in samples])
    assert min(made.coefficients) >= 0
    assert made.low == {"tokens": min(t for t, _ in samples)}
    assert made.high == {"tokens": max(t for t, _ in samples)}
    assert all(made.covers(tokens=t) for t, _ in samples)
    assert not made.covers(tokens=made.high["tokens"] * 1.01)


@given(terms, sizes, st.floats(0.01, 0.5))
def test_noise_does_not_bias_a_fit(coefficients, tokens, noise) -> None:
    """Each size is measured twice, too slow and too fast by the same share: the fit lies between, and the residual is that share."""
    samples = [({"tokens": t}, seconds(coefficients, t) * factor) for t in tokens for factor in (1 - noise, 1 + noise)]
    made = fit(FEATURES, samples)
    for t in tokens:
        assert made.seconds(tokens=t) == pytest.approx(seconds(coefficients, t), rel=1e-3)
    assert made.residual == pytest.approx(noise, rel=0.01)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12))
def test_a_constant_is_fitted_by_the_mean(samples) -> None:
    made = fit(("1",), [({}, s) for s in samples])
    assert made.coefficients[0] == pytest.approx(np.mean(samples))
    assert made.residual == pytest.approx(np.std(samples) / np.mean(samples), abs=1e-9)


def test_a_fit_finds_the_coefficients_and_ranges_worked_out_by_hand() -> None:
    made = fit(
        ("calls", "bytes"), [({"calls": 1, "bytes": 100}, 3.0), ({"calls": 5, "bytes": 100}, 11.0), ({"calls": 1, "bytes": 300}, 5.0)]
    )
    assert made.by_feature == pytest.approx({"calls": 2.0, "bytes": 0.01})
    assert made.covers(calls=3, bytes=200)
    assert not made.covers(calls=6, bytes=200)
    assert not made.covers(calls=3, bytes=99)


def test_impossible_fits_are_refused() -> None:
    with pytest.raises(ValueError, match="2 samples cannot fit the 3 features"):
        fit(FEATURES, [({"tokens": 1}, 1.0), ({"tokens": 2}, 2.0)])
    with pytest.raises(ValueError, match="has 1 coefficients"):
        Fit(("1", "tokens"), (1.0,), {}, {}, 0.0, 1)
    with pytest.raises(ValueError, match="not finite"):
        Fit(("1",), (float("nan"),), {}, {}, 0.0, 1)


MODEL = ModelSpec("toy", layers=2, kv_heads=1, head_dim=8)
CURVE = Curve((0.1, 0.5), (1.0, 0.01), (0.0, 8.0))


@pytest.fixture
def profile() -> Profile:
    made = fit(("1", "tokens"), [({"tokens": t}, 0.5 + t / 7) for t in (1, 2, 3)])
    return Profile(MODEL, {"encode/8": made}, (RateCurve(64, CURVE, CURVE),), {"cpu": "made up"}, created="today")


def test_save_and_load(profile, tmp_path) -> None:
    profile.save(tmp_path / "profile.json")
    assert load(tmp_path / "profile.json") == profile
    assert [p.name for p in tmp_path.iterdir()] == ["profile.json"]


def test_a_curve_keeps_its_calibration_and_an_old_one_has_an_unknown_one(profile, tmp_path) -> None:
    path, named = tmp_path / "profile.json", replace(profile.curves[0], calibration="ab12")
    replace(profile, curves=(named, replace(named, calibration=""))).save(path)
    assert [curve.calibration for curve in load(path).curves] == ["ab12", ""]
    data = asdict(profile)
    del data["curves"][0]["calibration"]
    path.write_text(json.dumps(data))
    assert load(path).curves[0].calibration is None
    data["curves"][0]["calibration"] = 3
    path.write_text(json.dumps(data))
    assert "the calibration of a curve is 3" in refused(path)


def test_a_missing_table_is_named(profile) -> None:
    assert profile.fit("encode/8").samples == 3
    with pytest.raises(ValueError, match="no table decode; it has encode/8"):
        profile.fit("decode")


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match="profile") as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_no_profile_is_refused(profile, tmp_path) -> None:
    path = tmp_path / "profile.json"
    assert "does not exist" in refused(path)
    for data in (b"{", b"\xff", b""):
        path.write_bytes(data)
        assert "cannot be read" in refused(path)
    for content in ([], 3, {}, {"schema_version": SCHEMA_VERSION + 1}):
        path.write_text(json.dumps(content))
        assert f"this code reads {SCHEMA_VERSION}" in refused(path)


@pytest.mark.parametrize("key", ["model", "fits", "curves", "fingerprint", "source", "created"])
def test_a_profile_that_lacks_a_part_is_damaged(profile, tmp_path, key) -> None:
    path = tmp_path / "profile.json"
    data = asdict(profile)
    del data[key]
    path.write_text(json.dumps(data))
    assert "damaged" in refused(path)


@pytest.mark.parametrize(
    "hurt",
    [
        lambda data: data["model"].update(layers=0),
        lambda data: data["model"].update(colour="red"),
        lambda data: data["fits"]["encode/8"].update(coefficients=[1.0]),
        lambda data: data["fits"]["encode/8"].pop("low"),
        lambda data: data["curves"][0]["slope"].update(bytes=[]),
        lambda data: data["curves"][0].pop("tokens"),
    ],
)
def test_a_profile_with_a_wrong_part_is_damaged(profile, tmp_path, hurt) -> None:
    path = tmp_path / "profile.json"
    data = json.loads(json.dumps(asdict(profile)))
    hurt(data)
    path.write_text(json.dumps(data))
    assert "damaged" in refused(path)

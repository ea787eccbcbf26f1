"""Quality curves: they are read as they were written, and their mean between the points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from abkt.codec import calibration
from abkt.policy.view import Curve
from abkt.profile.schema import RateCurve
from experiments.lib.curves import (  # fmt: skip
    QualityCurve,
    expected_quality,
    expected_rise,
    load_curves,
    load_quality,
    quality_of,
    save_quality,
    stored_quality,
)
from experiments.lib.paths import data_path

CURVE = QualityCurve("text", "ours", 100, (0.1, 0.2, 0.4), (0.1, 0.01, 0.001), (0.5, 0.1, 0.02), (0.6, 0.2, 0.03))


def test_a_library_is_read_as_it_was_written(tmp_path):
    save_quality([CURVE, CURVE], tmp_path / "c.json")
    assert load_quality(tmp_path / "c.json") == (CURVE, CURVE)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '[{"kind": "text"}]', '[{"kind": 1, "a": 2}]'])
def test_a_damaged_library_is_one_line(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=r"quality curves .*c\.json") as caught:
        load_quality(tmp_path / "c.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="do not exist; measure them with `abkt quality`"):
        load_quality(tmp_path / "none.json")


def test_the_rise_at_a_distortion_by_hand():
    """At its points, half way between two in the logarithm, at none, and beyond the ends."""
    at = np.array([0.1, 0.01, 0.001, 0.1 * 10**-0.5, 0.0, 0.0005, 0.9])
    expected = [0.5, 0.1, 0.02, 0.3, 0.0, 0.01, 0.5]
    assert expected_rise([CURVE], at) == pytest.approx(expected)
    other = QualityCurve("text", "ours", 100, (0.1,), (0.01,), (0.3,), (0.3,))
    assert expected_rise([CURVE, other], np.array([0.01])) == pytest.approx([0.2])


def test_transfers_are_judged_by_kind():
    other = QualityCurve("recall", "ours", 100, (0.1,), (0.01,), (0.3,), (0.3,))
    found = quality_of([0.01, 0.1, 0.1], [CURVE, other])
    assert found["text"]["mean"] == pytest.approx((0.1 + 0.5 + 0.5) / 3)
    assert found["text"]["p99"] == pytest.approx(0.5)
    assert found["recall"]["mean"] == pytest.approx(0.3)
    assert quality_of([], [CURVE]) == {}
    many = np.random.default_rng(0).uniform(0.001, 0.1, 20_000)
    whole = expected_rise([CURVE], many)
    assert quality_of(many, [CURVE])["text"] == pytest.approx({"mean": whole.mean(), "p99": np.quantile(whole, 0.99)}, rel=0.01)


def test_the_curves_that_come_with_abkt():
    """More distortion is worse, and what is hardly there does hardly anything."""
    rates = load_curves(data_path("curves/probe_calibrated.json"))
    found = [expected_quality([d], rates, stored_quality())[0] for d in (0.0, 0.0005, 0.005, 0.02)]
    for kind in ("recall", "text"):
        means = [of[kind]["mean"] for of in found]
        assert means == sorted(means)
        assert means[0] == 0
        assert means[1] < 0.005 < means[2] < 0.1 < means[3]


def test_the_stored_curves_name_the_stored_calibration():
    digest = calibration.load(data_path("probe/calibration.json")).digest
    assert {curve.calibration for curve in stored_quality()} == {digest}
    assert {curve.calibration for curve in load_curves(data_path("curves/probe_calibrated.json"))} == {digest}
    assert {curve.calibration for curve in load_curves(data_path("curves/probe.json"))} == {""}


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (["a"], ["b"], "with calibration a, the quality curves with b"),
        ([""], ["b"], "with calibration none, the quality curves with b"),
        ([None], [None], "with calibration unknown, the quality curves with unknown"),
        (["a", "b"], ["a"], "with calibration a, b, the quality curves with a"),
        ([], ["a"], "with calibration unknown, the quality curves with a"),
    ],
)
def test_no_rise_is_told_from_curves_of_different_calibrations(ours, theirs, words):
    point = Curve((0.1, 0.5), (1.0, 0.01), (0.0, 8.0))
    rise, refused = expected_quality(
        [0.01], [RateCurve(64, point, point, name) for name in ours], [replace(CURVE, calibration=name) for name in theirs]
    )
    assert rise is None
    assert words in refused
    rise, refused = expected_quality([0.01], [RateCurve(64, point, point, "")], [replace(CURVE, calibration="")])
    assert rise == {"text": {"mean": pytest.approx(0.1), "p99": pytest.approx(0.1)}}
    assert refused == ""

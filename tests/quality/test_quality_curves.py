"""Quality curves: they are read as they were written, and their mean between the points."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.lib.curves import QualityCurve, expected_quality, expected_rise, load_quality, quality_of, save_quality

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
    found = [expected_quality([d]) for d in (0.0, 0.0005, 0.005, 0.02)]
    for kind in ("recall", "text"):
        means = [of[kind]["mean"] for of in found]
        assert means == sorted(means)
        assert means[0] == 0
        assert means[1] < 0.005 < means[2] < 0.1 < means[3]

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.view import Curve

unit = st.floats(0, 1)


@st.composite
def curves(draw, points: int = 12) -> Curve:
    n = draw(st.integers(1, points))
    size = sorted(draw(st.lists(unit, min_size=n, max_size=n, unique=True)))
    distortion = sorted(draw(st.lists(unit, min_size=n, max_size=n)), reverse=True)
    bits = sorted(draw(st.lists(st.floats(0, 8), min_size=n, max_size=n)))
    return Curve(tuple(size), tuple(distortion), tuple(bits))


@given(curves(), st.one_of(unit, st.floats(-1, 2)))
def test_the_finest_cut_within_a_budget(curve, budget) -> None:
    fitting = [i for i, size in enumerate(curve.bytes) if size <= budget]
    assert curve.cut_within(budget) == (max(fitting) if fitting else 0)


@given(curves(), st.one_of(unit, st.floats(-1, 2)))
def test_the_coarsest_cut_that_is_good_enough(curve, distortion) -> None:
    good = [i for i, d in enumerate(curve.distortion) if d <= distortion]
    assert curve.cut_reaching(distortion) == (min(good) if good else curve.finest)


@given(curves(), st.floats(0, 9))
def test_the_coarsest_cut_of_so_many_bits(curve, bits) -> None:
    enough = [i for i, b in enumerate(curve.bits) if b >= bits - 1e-9]
    assert curve.cut_of_bits(bits) == (min(enough) if enough else curve.finest)


@given(curves(), st.floats(0.5, 1e9), unit)
def test_scaling_scales_bytes_and_budgets_alike(curve, factor, budget) -> None:
    scaled = curve.scaled(factor)
    assert scaled.bytes == pytest.approx([size * factor for size in curve.bytes])
    assert (scaled.distortion, scaled.bits) == (curve.distortion, curve.bits)
    at = curve.cut_within(budget)
    assert scaled.cut_within(curve.bytes[at] * factor) == at or at == 0


@pytest.mark.parametrize("columns", [((), (), ()), ((1.0,), (1.0, 0.5), (0.0,)), ((1.0, 2.0), (1.0,), (0.0, 1.0))])
def test_ragged_curves_are_refused(columns) -> None:
    with pytest.raises(ValueError, match="as many bytes"):
        Curve(*columns)

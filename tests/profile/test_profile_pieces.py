"""Piecewise-linear fits, as the schema evaluates them."""

from __future__ import annotations

import pytest

from abkt.profile.schema import fit

KNOTTED = ("1", "batch", "batch>8", "context")


def true_s(batch: float, context: float) -> float:
    """Flat to 8, then steeper; by hand: 3 ms, 0.1 ms a request, 0.5 ms more for each beyond 8, 2 us a token."""
    return 0.003 + 0.0001 * batch + 0.0005 * max(0.0, batch - 8) + 2e-6 * context


def test_a_knot_is_found_and_evaluated() -> None:
    points = [(float(b), float(c)) for b in (1, 4, 8, 12, 40) for c in (100, 5000)]
    made = fit(KNOTTED, [({"batch": b, "context": c}, true_s(b, c)) for b, c in points])
    assert made.coefficients == pytest.approx((0.003, 0.0001, 0.0005, 2e-6), rel=1e-6)
    assert made.residual < 1e-9
    for batch, context in ((3, 7), (8, 7), (9, 7), (100, 9999)):
        assert made.seconds(batch=batch, context=context) == pytest.approx(true_s(batch, context), rel=1e-6)


def test_the_range_is_that_of_the_variables() -> None:
    made = fit(("1", "batch>8"), [({"batch": float(b)}, 1.0 + max(0, b - 8)) for b in (1, 8, 20)])
    assert (made.low, made.high) == ({"batch": 1.0}, {"batch": 20.0})
    assert made.covers(batch=15)
    assert not made.covers(batch=30)

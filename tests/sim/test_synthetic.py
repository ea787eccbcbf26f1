from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.workload.requests import Request
from sim.workload.synthetic import Gamma, OnOff, Poisson, Weibull, synthetic, weibull_shape


def test_poisson_arrivals_have_the_configured_rate_and_lengths() -> None:
    requests = synthetic(20_000, 20.0, 868, 227, variation=0.5, seed=3)
    gaps = np.diff([r.arrival_s for r in requests])
    assert requests[0].arrival_s == 0.0
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.03)
    for mean, drawn in ((868, [r.isl for r in requests]), (227, [r.osl for r in requests])):
        assert np.mean(drawn) == pytest.approx(mean, rel=0.02)
        assert np.std(drawn) / np.mean(drawn) == pytest.approx(0.5, rel=0.05)
    assert requests == synthetic(20_000, 20.0, 868, 227, variation=0.5, seed=3) != synthetic(20_000, 20.0, 868, 227, variation=0.5, seed=4)
    assert {(r.isl, r.osl) for r in synthetic(10, 20.0, 868, 227)} == {(868, 227)}


@pytest.mark.parametrize(
    ("arrivals", "cv"), [(Poisson(), 1.0), (Gamma(0.3), 0.3), (Gamma(3.0), 3.0), (Weibull(0.5), 0.5), (Weibull(2.0), 2.0)]
)
def test_gaps_have_the_configured_mean_and_coefficient_of_variation(arrivals, cv) -> None:
    gaps = np.diff(arrivals.times_s(200_000, 8.0, np.random.default_rng(1)))
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_on_off_arrivals_pause_and_keep_the_configured_mean_rate() -> None:
    """Ten seconds on and thirty off: four times the rate while on, and the configured rate in the long run."""
    times = OnOff(10.0, 30.0).times_s(100_000, 5.0, np.random.default_rng(2))
    gaps = np.diff(times)
    assert len(times) / times[-1] == pytest.approx(5.0, rel=0.1)
    assert np.median(gaps) == pytest.approx(np.log(2) / 20, rel=0.05)
    assert (gaps > 5.0).sum() == pytest.approx(times[-1] / 40 * np.exp(-5 / 30), rel=0.1)  # every pause of more than 5 s


@given(st.sampled_from([Poisson(), Gamma(2.0), Weibull(0.7), OnOff(1.0, 0.5)]), st.integers(1, 50), st.integers(0, 99))
def test_arrival_times_start_at_0_and_never_fall(arrivals, count, seed) -> None:
    times = arrivals.times_s(count, 3.0, np.random.default_rng(seed))
    assert len(times) == count
    assert times[0] == 0.0
    assert (np.diff(times) >= 0).all()


@settings(max_examples=50)
@given(st.floats(0.05, 20.0))
def test_the_weibull_shape_gives_the_coefficient_of_variation(cv) -> None:
    from scipy.stats import weibull_min

    mean, variance = weibull_min.stats(weibull_shape(cv), moments="mv")
    assert np.sqrt(variance) / mean == pytest.approx(cv, rel=1e-6)


@pytest.mark.parametrize("made", [lambda: Gamma(0.0), lambda: Weibull(-1.0), lambda: OnOff(0.0, 1.0), lambda: OnOff(1.0, float("inf"))])
def test_impossible_parameters_are_refused(made) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        made()


def test_an_empty_workload_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        synthetic(0, 1.0, 1, 1)
    assert synthetic(1, 1.0, 3, 4) == [Request(0, 0.0, 3, 4)]

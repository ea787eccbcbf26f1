"""The ranking of policies and decision regret, on cases that can be solved by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.study.ranking import TAIL, rank, regret


def summary(goodput: float, ttft: float, mean: float | None, p99: float | None = None) -> dict[str, Any]:
    distortion = {} if mean is None else {"mean": mean, "p99": mean if p99 is None else p99}
    return {"goodput_per_s": goodput, "ttft_s": {"mean": ttft}, "distortion": distortion}


def test_most_goodput_wins_among_the_feasible() -> None:
    verdict = rank({"raw": summary(1.0, 2.0, 0.0), "int8": summary(2.0, 1.0, 0.001), "int2": summary(4.0, 0.1, 0.2)}, 0.02)
    assert verdict.pick == "int8"
    assert [s.policy for s in verdict.ranking] == ["int8", "raw", "int2"]
    assert verdict.of("int2").reason == "mean distortion 0.2 is above 0.02"
    assert "most goodput, 2 requests/s" in verdict.reason


def test_the_tail_may_be_eight_times_the_limit_and_no_more() -> None:
    at, above = summary(1.0, 1.0, 0.02, TAIL * 0.02), summary(9.0, 0.1, 0.02, TAIL * 0.02 * 1.001)
    verdict = rank({"at": at, "above": above}, 0.02)
    assert verdict.pick == "at"
    assert verdict.of("above").reason == "p99 distortion 0.16 is above 0.16"
    assert "alone" in verdict.reason


def test_a_tie_within_one_percent_goes_to_the_lower_mean_ttft() -> None:
    verdict = rank({"a": summary(100.0, 2.0, 0.0), "b": summary(99.5, 1.0, 0.0), "c": summary(98.9, 0.1, 0.0)}, 0.02)
    assert [s.policy for s in verdict.ranking] == ["b", "a", "c"]  # c is not within 1 % of the highest, whatever its TTFT
    assert "lowest mean TTFT" in verdict.reason


def test_none_is_feasible() -> None:
    verdict = rank({"int2": summary(3.0, 1.0, 0.3), "int4": summary(2.0, 1.0, 0.1), "dead": summary(0.0, math.nan, None)}, 0.02)
    assert verdict.pick is None
    assert [s.policy for s in verdict.ranking] == ["int4", "int2", "dead"]  # nearest to the limit first
    assert verdict.of("dead").reason == "no request completed"
    assert verdict.reason.startswith("no policy keeps")


def test_summaries_read_back_from_json_have_null_for_nan() -> None:
    empty = {"goodput_per_s": 0.0, "ttft_s": {"mean": None}, "distortion": {"mean": None, "p99": None}}
    assert rank({"dead": empty}, 0.02).pick is None


def test_regret_of_agreement_is_zero() -> None:
    verdict = rank({"raw": summary(1.0, 2.0, 0.0), "int8": summary(2.0, 1.0, 0.001)}, 0.02)
    found = regret(verdict, verdict)
    assert (found.goodput_share, found.ttft_s, found.violates) == (0.0, 0.0, False)


def test_regret_is_what_hardware_loses_by_following_the_simulator() -> None:
    hardware = rank({"raw": summary(3.0, 0.5, 0.0), "int8": summary(4.0, 0.4, 0.001)}, 0.02)
    simulated = rank({"raw": summary(5.0, 0.1, 0.0), "int8": summary(4.0, 0.4, 0.001)}, 0.02)
    found = regret(simulated, hardware)
    assert (found.simulated_pick, found.hardware_best) == ("raw", "int8")
    assert found.goodput_share == pytest.approx(0.25)
    assert found.ttft_s == pytest.approx(0.1)


def test_a_pick_that_hardware_forbids_violates() -> None:
    hardware = rank({"raw": summary(3.0, 0.5, 0.0), "int2": summary(4.0, 0.4, 0.2)}, 0.02)
    simulated = rank({"raw": summary(3.0, 0.5, 0.0), "int2": summary(4.0, 0.4, 0.01)}, 0.02)
    assert regret(simulated, hardware).violates
    nothing = rank({"raw": summary(3.0, 0.5, 0.5), "int2": summary(4.0, 0.4, 0.2)}, 0.02)
    assert regret(simulated, nothing).violates
    assert math.isnan(regret(simulated, nothing).goodput_share)


def test_regret_over_other_policies_is_refused() -> None:
    with pytest.raises(ValueError, match="same policies"):
        regret(rank({"raw": summary(1, 1, 0)}, 0.02), rank({"int8": summary(1, 1, 0)}, 0.02))


FIGURES = st.tuples(st.floats(0, 100), st.floats(0.01, 50), st.floats(0, 0.1), st.floats(1, 20))


@given(st.dictionaries(st.sampled_from("abcdef"), FIGURES, min_size=1), st.floats(0.001, 0.05))
def test_no_feasible_policy_beats_the_pick(figures: dict[str, tuple[float, float, float, float]], limit: float) -> None:
    verdict = rank({p: summary(g, t, d, d * tail) for p, (g, t, d, tail) in figures.items()}, limit)
    feasible = {p: f for p, f in figures.items() if f[2] <= limit and f[2] * f[3] <= TAIL * limit}
    assert sorted(s.policy for s in verdict.ranking) == sorted(figures)
    assert (verdict.pick is None) == (not feasible)
    if verdict.pick is not None:
        goodput, ttft = figures[verdict.pick][:2]
        assert verdict.pick in feasible
        for other_goodput, other_ttft, *_ in feasible.values():
            assert goodput >= other_goodput * 0.99
            assert other_goodput < max(f[0] for f in feasible.values()) * 0.99 or ttft <= other_ttft

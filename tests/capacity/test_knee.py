"""The search for the highest rate: brackets, goals, parts of a workload, and what may be said about the difference of two policies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.capacity.answer import answer
from experiments.capacity.bisection import WIDEST, Bracket, bisection, expected_tries
from experiments.capacity.goal import Goal
from experiments.capacity.knee import Knee, Search, ratio, student
from experiments.capacity.parts import parts
from sim.workload.requests import Request


def searched(knee: float, start: float, tolerance: float) -> tuple[Bracket, list[float]]:
    """Search for a knee that is known."""
    search, tried = bisection(start, tolerance), []
    rate = next(search)
    while True:
        tried.append(rate)
        try:
            rate = search.send(rate <= knee)
        except StopIteration as end:
            return end.value, tried


@given(knee=st.floats(0.02, 60), tolerance=st.floats(0.005, 0.3))
def test_the_bracket_holds_the_knee_and_is_no_wider_than_the_tolerance(knee: float, tolerance: float) -> None:
    bracket, tried = searched(knee, 1.0, tolerance)
    assert bracket.found
    assert bracket.holds <= knee < bracket.breaks
    assert bracket.breaks <= bracket.holds * (1 + tolerance) * (1 + 1e-12)
    assert {bracket.holds, bracket.breaks} <= set(tried)
    assert len(tried) == len(set(tried)) <= expected_tries(tolerance) + math.log2(WIDEST)


def test_a_search_by_hand() -> None:
    """It doubles from 1 to 4, which breaks; the middles of 2 and 4 in ratios are 2.83, which holds, and 3.36, which breaks."""
    bracket, tried = searched(3.0, 1.0, 0.2)
    assert tried == pytest.approx([1, 2, 4, 8**0.5, 2**1.75])
    assert bracket == Bracket(pytest.approx(8**0.5), pytest.approx(2**1.75))


def test_what_never_holds_or_never_breaks_ends_soon() -> None:
    assert searched(0.0, 1.0, 0.02) == (Bracket(0.0, 1 / WIDEST), [1.0, 1 / WIDEST])
    bracket, tried = searched(1e9, 1.0, 0.02)
    assert bracket == Bracket(WIDEST, math.inf)
    assert tried == [2.0**n for n in range(7)]


FIGURES = {"distortion.mean": 0.004, "distortion.p99": 0.03, "good_share": 0.95, "late_share": 0.92}


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, ""),
        ({"distortion.mean": 0.02}, "mean distortion 0.02 is above 0.01"),
        ({"distortion.p99": 0.081}, "p99 distortion 0.081 is above 0.08"),
        ({"good_share": 0.8}, "80 % of the requests are within the SLO"),
        ({"late_share": 0.5}, "50 % of the requests are within the SLO"),  # the queue grows
    ],
)
def test_a_goal_is_a_share_and_two_bounds(changed: dict[str, float], missed: str) -> None:
    assert Goal(0.9, 0.01).missed({**FIGURES, **changed}) == missed
    assert Goal(0.9, 0.01).missed({"good_share": 0.0, "late_share": 0.0}) == "no request completed"


def trace(times_s: Sequence[float]) -> list[Request]:
    return [Request(index, time_s, 100 + index, 10) for index, time_s in enumerate(times_s)]


def test_parts_are_spread_over_the_workload_and_keep_their_pattern_at_any_rate() -> None:
    requests = trace([0, 1, 4, 5, 10, 12, 20, 30, 31, 40])
    first, second = parts(requests, 2, 3)
    assert (first.start, first.stop, second.start, second.stop) == (0, 3, 5, 8)
    assert (first.rate_per_s, second.rate_per_s) == (3 / 4, 3 / 18)
    moved = second.of(requests, 0.5)
    assert [r.arrival_s for r in moved] == pytest.approx([0, 8 / 3, 6])  # 0, 8 and 18 s, three times as fast
    assert [r.isl for r in moved] == [105, 106, 107]
    with pytest.raises(ValueError, match=r"has 10 requests; repeats=2 parts of requests=6 need 12"):
        parts(requests, 2, 6)
    with pytest.raises(ValueError, match="arrive at once"):
        parts(trace([0.0] * 10), 2, 3)


def test_intervals_are_those_of_the_tables() -> None:
    """t of 3 degrees of freedom is 3.182; the standard deviation of 8, 10, 10, 12 is 1.633."""
    interval = student([8.0, 10.0, 10.0, 12.0])
    assert (interval.low, interval.high) == pytest.approx((10 - 3.182 * 1.633 / 2, 10 + 3.182 * 1.633 / 2), abs=2e-3)
    more, interval = ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    assert (more, interval.low, interval.high) == pytest.approx((1.0, 1.0, 1.0))
    assert math.isnan(student([1.0]).low)


def knee(policy: str, rates: Sequence[float], distortion: float = 0.0, breaks: float | None = None) -> Knee:
    """A policy whose searches ended at these rates."""
    runs = [
        {"rate_per_s": rate, "distortion.mean": distortion, "distortion.p99": distortion, "good_share": 0.9, "late_share": 0.9}
        for rate in rates
    ]
    searches = tuple(Search(Bracket(rate, breaks or 1.02 * rate), (run,)) for rate, run in zip(rates, runs))
    return Knee(policy, searches, Goal(0.95, 0.01))


def verdict_of(*knees: Knee, requests: int = 10_000):
    return answer({k.policy: k for k in knees}, tolerance=0.02, requests=requests, ttft_s=10.0)


def test_a_clear_winner_is_named_with_its_margin() -> None:
    found = verdict_of(knee("raw", [5.0, 7.0, 6.0]), knee("embedded", [10.1, 14.0, 11.9], 0.001))
    assert (found.kind, found.policy) == ("use", "embedded")
    assert found.sentence.startswith("Use embedded: it holds 100 % [")
    assert "raw (12 against 6)." in found.sentence


def test_what_cannot_be_told_apart_is_a_tie_and_the_least_distorted_is_taken() -> None:
    """The best is 1 % higher on every part: that is within the tolerance of the bisection, however small its interval."""
    found = verdict_of(knee("int4", [10.1, 20.2, 30.3], 0.006), knee("fleet", [10.0, 20.0, 30.0], 0.001), knee("raw", [1.0, 2.0, 3.0]))
    assert (found.kind, found.policy) == ("tie", "fleet")
    found = verdict_of(knee("int4", [10.0, 30.0, 20.0], 0.006), knee("fleet", [15.0, 10.0, 20.0], 0.001))  # large, but not on every part
    assert (found.kind, found.policy) == ("tie", "fleet")
    assert "cannot be told apart" in found.sentence


@pytest.mark.parametrize(
    ("knees", "part"),
    [
        ([knee("raw", [0.0, 1.0, 1.0]), knee("int4", [0.0, 0.0, 0.0])], "no policy meets the goal at any rate"),
        ([knee("raw", [5.0, 5.0, 5.0], breaks=math.inf)], "raw met the goal at every rate tried"),
        ([knee("raw", [500.0, 500.0, 500.0])], "give requests=25000"),  # 10,000 requests arrive within 20 s, and TTFT may be 10 s
    ],
)
def test_there_is_no_answer_from_runs_that_show_nothing(knees: list[Knee], part: str) -> None:
    found = verdict_of(*knees)
    assert (found.kind, found.policy) == ("no_answer", None)
    assert part in found.sentence


def test_a_policy_without_a_knee_says_why() -> None:
    assert "90 % of the requests are within the SLO, even at" in knee("raw", [0.0, 1.0, 1.0]).reason()
    assert knee("raw", [1.0, 2.0]).reason() == ""

"""The verdict of a study, on measured runs whose answer is known by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.report.verdict import Verdict
from experiments.study.decision import Measured, between, compare_pair, decide, student

IDLE = {"prefill": 0.6, "decode": 0.4}
REPEATS, REQUESTS = 3, 16


def runs(policy: str, good: int, ttft_s: float, distortion: float = 0.0, noise: float = 0.01, seed: int = 0) -> Measured:
    """A policy with `good` of 16 requests within the SLO in each repeat, and TTFTs around a mean. noise: between repeats, relative."""
    random = np.random.default_rng((seed, len(policy), *map(ord, policy)))
    within = np.tile(np.arange(REQUESTS) < good, (REPEATS, 1)).astype(float)
    requests = np.linspace(0.9, 1.1, REQUESTS)  # the same requests are long in every policy
    repeats = 1 + noise * random.standard_normal((REPEATS, 1))
    return Measured(policy, within, ttft_s * requests * repeats, distortion, distortion)


def verdict(*measured: Measured, limit: float = 0.01, **more: Any) -> Verdict:
    return decide(measured, limit, more.pop("busy", IDLE), **more).verdict


def test_a_clear_winner_is_used_with_its_margin() -> None:
    """16 of 16 against 8 of 16: half of the requests, 50 points. One run cannot know a share better than half a request, 1/32, so Student's
    interval of three equal differences is 0.5 -+ 4.303 / 32 / sqrt(3) = 0.5 -+ 0.078; the requests' own is wider."""
    found = verdict(runs("raw", 8, 2.0), runs("int8", 16, 0.5, 0.0001))
    assert (found.kind, found.policy) == ("use", "int8")
    assert found.sentence.startswith("Use int8: 100 % of its requests are within the SLO, 50 points [")
    assert "more than with raw, the next best" in found.sentence
    pair = between("int8", "raw", [compare_pair(runs("raw", 8, 2.0), runs("int8", 16, 0.5))])
    assert pair.share.low <= 0.5 - 4.303 / 32 / math.sqrt(3) + 1e-3
    assert pair.share.high >= 0.5 + 4.303 / 32 / math.sqrt(3) - 1e-3


def test_where_all_keep_the_slo_the_lower_ttft_wins_and_says_so() -> None:
    found = verdict(runs("int8", 16, 1.0, 0.0001), runs("embedded", 16, 0.5, 0.001))
    assert (found.kind, found.policy) == ("use", "embedded")
    assert "less than that of int8" in found.sentence
    assert "100 % against 100 %" in found.sentence
    low, high = (float(x) for x in found.sentence.partition("% [")[2].partition("]")[0].split(", "))
    assert low < 50 < high


def test_equal_policies_are_a_tie_that_less_distortion_wins() -> None:
    """fleet is 0.5 % faster, which nobody can tell from zero; raw is told apart and takes no part in the tie."""
    found = verdict(runs("fleet", 16, 0.4975, 0.002), runs("embedded", 16, 0.5, 0.001), runs("raw", 4, 3.0))
    assert (found.kind, found.policy) == ("tie", "embedded")
    assert found.sentence.startswith("fleet and embedded cannot be told apart here (embedded against fleet: 100 % and 100 %")
    assert "take embedded, which distorts the KV less (0.001, against 0.002 with fleet)" in found.sentence
    assert "raw" not in found.sentence


def test_one_good_request_of_48_is_no_answer() -> None:
    """The run that the issue of this rule began with: one request of 48 within the SLO, for every policy."""
    lone = np.zeros((3, 16))
    lone[0, 0] = 1
    policies = [Measured(name, lone, np.full((3, 16), 10.0), 0.0, 0.0) for name in ("raw", "int8", "int4")]
    found = verdict(*policies)
    assert (found.kind, found.policy, found.why) == ("no_answer", None, "too few good requests")
    assert "1 of 48 requests" in found.sentence
    assert "slo.ttft_s" in found.sentence


@pytest.mark.parametrize(("slower", "advice"), [(1.0, "load=0.4"), (3.2, "3.2 times as long as when the machine was profiled")])
def test_an_overloaded_twin_is_no_answer_whatever_its_policies_say(slower: float, advice: str) -> None:
    found = verdict(runs("raw", 8, 2.0), runs("int8", 16, 0.5), busy={"prefill": 1.2, "decode": 0.4}, slower=slower)
    assert (found.kind, found.why) == ("no_answer", "overloaded")
    assert "the prefill worker had work for 120 % of the time" in found.sentence
    assert advice in found.sentence
    assert verdict(runs("raw", 8, 2.0), runs("int8", 16, 0.5), busy={"prefill": 0.95, "decode": 0.95}).kind == "use"


def test_noise_above_every_difference_is_no_answer() -> None:
    found = verdict(*(runs(name, 12, 1.0, noise=0.5, seed=seed) for seed, name in enumerate(("raw", "int8", "int4"))))
    assert (found.kind, found.why) == ("no_answer", "the machine was too noisy")
    assert "minutes=10" in found.sentence


def test_a_policy_over_the_distortion_limit_takes_no_part() -> None:
    found = decide([runs("raw", 8, 2.0), runs("int2", 16, 0.1, 0.08)], 0.01, IDLE)
    assert (found.verdict.kind, found.verdict.policy) == ("use", "raw")
    assert "alone" in found.verdict.sentence
    assert found.refused == {"int2": "mean distortion 0.08 is above 0.01"}
    nothing = decide([runs("int2", 16, 0.1, 0.08)], 0.01, IDLE).verdict
    assert (nothing.kind, nothing.why) == ("no_answer", "no policy keeps the distortion limit")


def test_nothing_completed_is_no_answer() -> None:
    dead = Measured("raw", np.zeros((3, 16)), np.full((3, 16), np.nan), math.nan, math.nan)
    assert verdict(dead).kind == "no_answer"


def test_one_repeat_tells_nothing_apart() -> None:
    a, b = (Measured(name, np.ones((1, 16)), np.full((1, 16), seconds), 0.0, 0.0) for name, seconds in (("a", 1.0), ("b", 5.0)))
    assert compare_pair(a, b).winner == ""
    assert verdict(a, b).why == "the machine was too noisy"


def test_student_s_interval_by_hand() -> None:
    """Mean 2, deviation 1, three values: 2 -+ 4.303 / sqrt(3)."""
    found = student(np.array([1.0, 2.0, 3.0]))
    assert found.low == pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-3)
    assert found.high == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-3)
    assert student(np.array([1.0])).high == math.inf
    assert student(np.array([1.0, 1.0]), least_deviation=0.1).high > 1.0


FIGURES = st.tuples(st.integers(8, 16), st.floats(0.2, 4.0), st.sampled_from([0.0, 0.001, 0.005]), st.floats(0.001, 0.1))


@given(st.dictionaries(st.sampled_from("abcde"), FIGURES, min_size=2))
def test_no_policy_beats_the_answer_and_a_pair_reads_the_same_from_both_sides(figures: dict[str, tuple[int, float, float, float]]) -> None:
    found = decide([runs(name, *of) for name, of in figures.items()], 0.01, IDLE)
    policy = found.verdict.policy
    assert (policy is None) == (found.verdict.kind == "no_answer")
    for pair in found.pairs:
        other = between(pair.b, pair.a, found.pairs)
        assert other.winner == pair.winner
        assert between(pair.a, pair.b, found.pairs) is pair
        if pair.winner and policy in (pair.a, pair.b) and len(found.best) < len(figures):
            assert pair.winner == policy
    if found.verdict.kind == "use":
        assert found.best == (policy,)
    if found.verdict.kind == "tie":
        assert figures[policy or ""][2] == min(figures[name][2] for name in found.best)

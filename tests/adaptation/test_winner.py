"""The outcome of a pair with a margin, and who wins a comparison: hand-made scores."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.adaptation.outcome import Margin, outcome, pair
from experiments.adaptation.scores import Score
from experiments.adaptation.winner import Winner, verdict, winner

SLO_S = 1.5
MARGIN = Margin(within_slo=0.01, ttft=0.02)


def score(name: str, ttft_s: list[list[float]], distortion: float) -> Score:
    made = Score(name)
    for repeat in ttft_s:
        made.ttft_s.append(np.array(repeat))
        made.exposed_s.append(np.array(repeat))
        made.distortion.append(np.full(len(repeat), distortion))
    return made


def found(scores: dict[str, Score], left_out: set[str] | None = None) -> Winner | None:
    return winner(scores, left_out or set(), SLO_S, MARGIN)


@pytest.mark.parametrize(
    ("gain", "low", "high", "so"),
    [
        (0.02, 0.005, 0.04, "win"),
        (0.008, 0.002, 0.014, "cannot tell"),  # better, but perhaps by less than matters
        (0.004, 0.001, 0.009, "tie"),  # surely better, and surely by less than matters
        (0.0, -0.009, 0.009, "tie"),
        (0.0, -0.02, 0.02, "cannot tell"),
        (0.03, -0.01, 0.08, "cannot tell"),
        (-0.02, -0.04, -0.005, "lose"),
        (0.0, 0.0, 0.0, "tie"),
    ],
)
def test_the_outcome_has_a_margin(gain, low, high, so) -> None:
    assert outcome(gain, low, high, 0.01, repeats=5) == so
    assert outcome(gain, low, high, 0.01, repeats=1) == "cannot tell"
    mirrored = outcome(-gain, -high, -low, 0.01, repeats=5)
    assert mirrored == {"win": "lose", "lose": "win"}.get(so, so)


def test_a_pair_is_judged_on_the_slo_and_on_mean_ttft() -> None:
    ours, theirs = score("ours", [[1.0, 1.0, 1.0, 2.0]] * 3, 0.01), score("theirs", [[0.5, 0.5, 2.0, 2.0]] * 3, 0.02)
    made = pair(ours, theirs, SLO_S, MARGIN)
    assert (made.on_slo, made.on_ttft) == ("win", "tie")  # 3 of 4 against 2 of 4; 1.25 s against 1.25 s
    assert made.distortion_mean["ratio"] == 0.5
    assert pair(theirs, ours, SLO_S, MARGIN).on_slo == "lose"
    assert made.exposed_p99 is None


def test_the_most_requests_within_the_slo_win_if_every_repeat_says_so() -> None:
    scores = {
        "ours": score("ours", [[1.0, 1.2], [0.9, 1.1], [1.0, 1.0]], 0.01),
        "fixed": score("fixed", [[0.1, 2.2], [0.1, 2.1], [0.1, 2.0]], 0.005),
        "coarse": score("coarse", [[0.1, 0.1]] * 3, 0.9),
        "oracle": score("oracle", [[0.5, 0.5]] * 3, 0.01),
    }
    made = found(scores, {"coarse", "oracle"})
    assert made is not None
    assert (made.policy, made.second, made.told_apart) == ("ours", "fixed", True)
    answer = verdict(made, "wan")
    assert (answer.kind, answer.policy) == ("use", "ours")
    assert "50.0 [50.0, 50.0] points more" in answer.sentence


def test_alike_and_not_told_apart_are_kept_apart_and_less_distortion_is_taken() -> None:
    wide = {"a": score("a", [[1.0], [2.0], [1.0]], 0.01), "b": score("b", [[2.0], [1.0], [2.0]], 0.002)}
    alike = {"a": score("a", [[1.0]] * 3, 0.01), "b": score("b", [[1.2]] * 3, 0.002)}
    for scores, said in ((wide, "cannot be told apart"), (alike, "are alike")):
        made = found(scores)
        assert made is not None
        assert (made.policy, made.told_apart) == ("a", False)
        answer = verdict(made, "wan")
        assert (answer.kind, answer.policy) == ("tie", "b")
        assert said in answer.sentence


def test_one_repeat_and_broken_bounds_give_no_answer() -> None:
    scores = {"a": score("a", [[1.0]], 0.01), "b": score("b", [[2.0]], 0.002)}
    once = verdict(found(scores), "wan")
    assert (once.kind, once.policy) == ("no_answer", None)
    assert "repeats=5" in once.why
    assert verdict(found(scores, {"a", "b"}), "wan").kind == "no_answer"
    alone = verdict(found(scores, {"a"}), "wan")
    assert (alone.kind, alone.policy) == ("use", "b")

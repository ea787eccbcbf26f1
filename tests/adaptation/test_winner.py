"""Who wins a comparison: hand-made scores, and the three forms of the answer."""

from __future__ import annotations

import numpy as np

from experiments.adaptation.scores import Score
from experiments.adaptation.winner import verdict, winner


def score(name: str, ttft_s: list[list[float]], distortion: float) -> Score:
    made = Score(name)
    for repeat in ttft_s:
        made.ttft_s.append(np.array(repeat))
        made.exposed_s.append(np.array(repeat))
        made.distortion.append(np.full(len(repeat), distortion))
    return made


def test_the_lowest_mean_ttft_within_the_bounds_wins_if_every_repeat_says_so() -> None:
    scores = {
        "ours": score("ours", [[1.0, 1.2], [0.9, 1.1], [1.0, 1.0]], 0.01),
        "fixed": score("fixed", [[2.0, 2.2], [1.9, 2.1], [2.0, 2.0]], 0.005),
        "coarse": score("coarse", [[0.1, 0.1]] * 3, 0.9),
        "oracle": score("oracle", [[0.5, 0.5]] * 3, 0.01),
    }
    found = winner(scores, {"coarse", "oracle"})
    assert found is not None
    assert (found.policy, found.second, found.told_apart) == ("ours", "fixed", True)
    answer = verdict(found, "wan")
    assert (answer.kind, answer.policy) == ("use", "ours")
    assert "0.51 [" in answer.sentence


def test_repeats_that_disagree_are_a_tie_and_less_distortion_is_taken() -> None:
    scores = {"a": score("a", [[1.0], [1.3], [0.9]], 0.01), "b": score("b", [[1.1], [1.0], [1.2]], 0.002)}
    found = winner(scores, set())
    assert found is not None
    assert not found.told_apart
    answer = verdict(found, "wan")
    assert (answer.kind, answer.policy) == ("tie", "b")


def test_one_repeat_and_broken_bounds_give_no_answer() -> None:
    scores = {"a": score("a", [[1.0]], 0.01), "b": score("b", [[2.0]], 0.002)}
    once = verdict(winner(scores, set()), "wan")
    assert (once.kind, once.policy) == ("no_answer", None)
    assert "repeats=5" in once.why
    assert verdict(winner(scores, {"a", "b"}), "wan").kind == "no_answer"
    alone = verdict(winner(scores, {"a"}), "wan")
    assert (alone.kind, alone.policy) == ("use", "b")

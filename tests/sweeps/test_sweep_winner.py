"""The winner of a grid, against cases worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.cli import dispatch
from experiments.sweeps.report import candidates_table, short_table
from experiments.sweeps.winner import Split, contests, whole

LIMIT = 0.01
NAMES = ("bitrate", "network.gbps", "seed")


def row(
    bitrate: str, goodput: float, ttft_s: float = 1.0, seed: int = 0, gbps: float = 1.0, distortion: float = 0.001, **more: Any
) -> dict[str, Any]:
    figures = {
        "goodput_per_s": goodput,
        "good_share": 0.9,
        "ttft_s.mean": ttft_s,
        "distortion.mean": distortion,
        "distortion.p99": distortion,
    }
    return {"bitrate": bitrate, "network.gbps": gbps, "seed": seed, "error": "", **figures, **more}


def seeds(bitrate: str, goodputs: Sequence[float], ttfts_s: Sequence[float] = (), **more: Any) -> list[dict[str, Any]]:
    return [row(bitrate, g, t, seed=i, **more) for i, (g, t) in enumerate(zip(goodputs, ttfts_s or [1.0] * len(goodputs), strict=True))]


def answer(*rows: list[dict[str, Any]], names: Sequence[str] = NAMES) -> Any:
    return whole(contests([one for many in rows for one in many], names, LIMIT), names)


def test_the_margin_is_students_interval_of_the_paired_differences() -> None:
    """Differences of 1, 2 and 3 over a mean of 10: 20 % with a standard error of 0.1/√3, times 4.303 for two degrees of freedom."""
    (one,) = contests([*seeds("a", [11, 12, 13]), *seeds("b", [10, 10, 10])], NAMES, LIMIT)
    margin = one.margins[0]
    assert (margin.figure, margin.seeds) == ("goodput", 3)
    assert margin.mean == pytest.approx(0.2)
    assert margin.interval.high - margin.mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    assert not margin.wins  # 0.2 ± 0.248
    assert one.verdict.kind == "tie"


def test_a_clear_winner() -> None:
    verdict = answer(seeds("a", [12.0, 12.1, 11.9]), seeds("b", [10.0, 10.1, 9.9]), seeds("c", [5.0, 5.2, 4.9]))
    assert (verdict.kind, verdict.policy) == ("use", "a")
    assert "goodput +20.0 %" in verdict.sentence
    assert "against b" in verdict.sentence


def test_equal_goodputs_are_decided_by_ttft() -> None:
    verdict = answer(seeds("a", [10, 10.02, 10.01], [1.0, 1.1, 0.9]), seeds("b", [10, 10.02, 10.01], [0.5, 0.6, 0.4]))
    assert (verdict.kind, verdict.policy) == ("use", "b")
    assert "mean TTFT −50.0 %" in verdict.sentence


def test_who_cannot_be_told_apart_is_a_tie_and_the_less_distorted_one_is_taken() -> None:
    verdict = answer(seeds("a", [12, 9, 11], [1, 2, 1], distortion=0.005), seeds("b", [10, 11, 10], [2, 1, 1.5], distortion=0.001))
    assert (verdict.kind, verdict.policy) == ("tie", "b")


def test_one_seed_gives_no_margin_and_so_no_winner() -> None:
    verdict = answer(seeds("a", [12]), seeds("b", [10]))
    assert (verdict.kind, verdict.policy) == ("no_answer", None)
    assert "a leads (goodput +20.0 % against b), but with one seed no margin is known" in verdict.sentence
    assert "seed=0,1,2" in verdict.why


def test_seeds_that_change_nothing_are_no_repeats() -> None:
    verdict = answer(seeds("a", [12, 12, 12]), seeds("b", [10, 10, 10]))
    assert verdict.kind == "no_answer"
    assert "all seeds give the same runs" in verdict.sentence


def test_only_those_within_the_limits_of_distortion_win() -> None:
    coarse, tail = seeds("coarse", [20, 21, 22], distortion=0.02), seeds("tail", [20, 21, 22], **{"distortion.p99": 0.09})
    (one,) = contests([*coarse, *tail, *seeds("a", [12.0, 12.1, 11.9])], NAMES, LIMIT)
    assert (one.verdict.kind, one.verdict.policy) == ("use", "a")
    assert set(one.faults) == {"coarse", "tail"}
    assert answer(coarse, tail).kind == "no_answer"


def test_an_overloaded_grid_has_no_answer() -> None:
    verdict = answer(seeds("a", [0.1, 0.2, 0.1], good_share=0.01), seeds("b", [0.0, 0.0, 0.0], good_share=0.0))
    assert verdict.kind == "no_answer"
    assert "1 % of the requests are within the SLO" in verdict.sentence


def test_the_answer_over_conditions() -> None:
    def at(gbps: float, better: str, worse: str, equal: bool = False) -> list[dict[str, Any]]:
        high = [10.0, 10.1, 9.9] if equal else [12.0, 12.1, 11.9]
        return seeds(better, high, [1.0, 1.2, 0.9], gbps=gbps) + seeds(worse, [10.0, 10.2, 9.7], [1.1, 1.0, 1.0], gbps=gbps)

    assert answer(at(1, "a", "b"), at(10, "a", "b")).policy == "a"
    both = answer(at(1, "a", "b"), at(10, "a", "b", equal=True))
    assert (both.kind, both.policy) == ("tie", "a")
    assert "wins in 1 of 2 conditions" in both.sentence
    split = answer(at(1, "a", "b"), at(10, "b", "a"))
    assert (split.kind, split.policy) == ("no_answer", None)
    assert "a wins in 1, b wins in 1" in split.sentence


def test_failed_points_are_left_out_and_a_grid_without_policies_has_no_contest() -> None:
    failed = {"bitrate": "a", "network.gbps": 1.0, "seed": 2, "error": "ValueError: no"}
    assert answer(seeds("a", [12.0, 12.1]), [failed], seeds("b", [10.0, 10.1, 9.9])).kind == "use"
    names = ("network.gbps", "seed")
    assert answer(seeds("a", [12, 11]), seeds("a", [10, 11], gbps=2.0), names=names) is None
    found = contests(seeds("a", [12, 11]), names, LIMIT)
    assert len(short_table(found, names).rows) == len(candidates_table(found, names).rows) == 1


def test_keys_of_a_policy_are_candidates() -> None:
    split = Split.of(["bitrate", "bitrate.target_distortion", "network", "cluster.prefill", "seed"])
    assert split == Split(("bitrate", "bitrate.target_distortion"), ("network", "cluster.prefill"))


@pytest.mark.slow
def test_the_verb_says_and_writes_the_same_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["workload=poisson", "workload.requests=20", "workload.isl=4000", "workload.osl=8", "network=1g"]
    assert dispatch(["sweep", *small, "bitrate=raw,int4", "seed=0,1,2", "workers=2", "csv=true", f"out={tmp_path / 'out'}"]) == 0
    verdict = json.loads((tmp_path / "out" / "sweep.json").read_text())["verdict"]
    assert (verdict["kind"], verdict["policy"]) == ("use", "int4")
    assert verdict["sentence"] in capsys.readouterr().out
    assert verdict["sentence"] in (tmp_path / "out" / "report.html").read_text()
    assert len(pd.read_csv(tmp_path / "out" / "sweep.csv")) == 6

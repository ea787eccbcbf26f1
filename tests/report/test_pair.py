"""Two runs beside each other: what they are called, who wins, and what they differ in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from abkt.records import RequestRecord
from experiments.cli import dispatch
from experiments.lib.results import write_json, write_records
from experiments.report.pair import differences, sides, verdict
from experiments.study.comparison import compare


def run(folder: Path, ttft_s: float, distortion: float, compute: str = "simulated", count: int = 40, decode_s: float = 1.0) -> Path:
    noise = np.random.default_rng(0).uniform(0.9, 1.1, count)
    records = []
    for i in range(count):
        token_s = i + ttft_s * noise[i]
        one = RequestRecord(i, 100, 12, float(i), decode_token_s=token_s, finish_s=token_s + decode_s, compute=compute)
        one.distortion_token_weighted = distortion
        one.expose(float(i), token_s, token_s, token_s, token_s)
        records.append(one)
    write_records(folder, records, [])
    return folder


def judged(a: Path, b: Path):
    return verdict(compare(a, b), *sides(a, b), 0.01)


@pytest.mark.parametrize(
    ("computes", "names"),
    [
        (("simulated", "simulated"), ["A", "B"]),
        (("real", "simulated"), ["measured", "predicted"]),
        (("paced", "simulated"), ["measured", "predicted"]),
        (("real", "real"), ["A", "B"]),
        (("simulated", "real"), ["A", "B"]),
    ],
)
def test_runs_are_called_what_they_are(tmp_path: Path, computes: tuple[str, str], names: list[str]) -> None:
    a, b = (run(tmp_path / name, 1.0, 0.0, compute) for name, compute in zip("ab", computes))
    assert [side.name for side in sides(a, b)] == names
    assert (judged(a, b) is None) == (names[0] == "measured")


def test_the_faster_run_wins_within_the_limit_of_distortion(tmp_path: Path) -> None:
    slow, fast = run(tmp_path / "slow", 1.0, 0.001), run(tmp_path / "fast", 0.8, 0.005)
    coarse, other = run(tmp_path / "coarse", 0.2, 0.02), run(tmp_path / "other", 0.2, 0.02)
    found = judged(slow, fast)
    assert (found.kind, found.policy) == ("use", "B")
    assert "TTFT −20.0 %" in found.sentence
    assert judged(fast, slow).policy == "A"
    assert judged(slow, coarse).policy == "A"
    assert judged(coarse, other).kind == "no_answer"


def test_equal_runs_are_a_tie_and_contrary_ones_have_no_winner(tmp_path: Path) -> None:
    one, same = run(tmp_path / "one", 1.0, 0.002), run(tmp_path / "same", 1.0, 0.001)
    found = judged(one, same)
    assert (found.kind, found.policy) == ("tie", "B")  # the less distorted one
    assert judged(one, run(tmp_path / "trade", 0.5, 0.002, decode_s=2.0)).kind == "no_answer"


def test_few_requests_give_no_answer(tmp_path: Path) -> None:
    found = judged(run(tmp_path / "a", 1.0, 0.0, count=19), run(tmp_path / "b", 0.1, 0.0, count=19))
    assert found.kind == "no_answer"
    assert "only 19 requests" in found.sentence


def test_differences_of_configurations() -> None:
    one, other = {"bitrate": {"bits": 4, "x": 1}, "seed": 0}, {"bitrate": {"bits": 8, "x": 1}, "seed": 0, "new": 1}
    assert differences(one, other) == ["bitrate.bits: 4, 8", "new: None, 1"]


def test_the_verb_says_a_b_and_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path / "a", 1.0, 0.0), run(tmp_path / "b", 0.8, 0.0)
    for folder, bits in ((a, "int4"), (b, "int8")):
        write_json(folder / "manifest.json", {"choices": {"bitrate": bits}, "config": {}})
    assert dispatch(["compare", str(a), str(b), f"out={tmp_path / 'out'}", "csv=true"]) == 0
    said = capsys.readouterr().out
    assert "change [95 %]" in said
    assert "measured" not in said
    assert "the runs differ in bitrate: int4, int8" in said
    stored = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert stored["names"] == ["A", "B"]
    assert stored["verdict"]["policy"] == "B"
    assert stored["verdict"]["sentence"] in (tmp_path / "out" / "report.html").read_text()
    table = pd.read_csv(tmp_path / "out" / "compare.csv").set_index(["stage", "statistic"])
    assert table.change["ttft", "mean"] == pytest.approx(-0.2)

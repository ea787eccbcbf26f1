"""`abkt capacity` on a small cluster: its knees against its runs and the capacity of a link, its files, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from experiments.cli import dispatch
from tests.experiments.refused import refused

SMALL = ("workload=poisson", "workload.isl=4000", "workload.osl=50", "cluster=1p1d", "network=5g", "slo.ttft_s=2")
SHORT = ("requests=100", "repeats=2", "tolerance=0.15", "pool=serial", "policies=[raw,int4]")


def test_knees_are_bracketed_by_runs_and_bound_by_the_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mean prompt of raw KV takes 0.84 s of a link of 5 Gbit/s, and one of int4 a quarter of it: int4 holds more than twice as much."""
    out = tmp_path / "capacity"
    assert dispatch(["capacity", *SMALL, *SHORT, "curve_rates=2", f"out={out}"]) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "capacity.json").read_text())
    assert found["verdict"]["sentence"] in said
    raw, int4 = (found["policies"][name] for name in ("raw", "int4"))
    assert found["verdict"]["kind"] == "use"
    assert found["verdict"]["policy"] == "int4"
    assert 0.1 < raw["rate_per_s"] < 5e9 / 8 / (4000 * 131072)  # what the link carries
    assert int4["rate_per_s"] > 2 * raw["rate_per_s"]
    runs = pd.read_parquet(out / "runs.parquet")
    for policy, one in (("raw", raw), ("int4", int4)):
        for part, knee in enumerate(one["by_part"]):
            mine = runs[(runs.policy == policy) & (runs.part == part) & (runs.step == "search")]
            assert mine[mine.meets].rate_per_s.max() == knee
            assert 1 < mine[~mine.meets].rate_per_s.min() / knee <= 1.15
            kept = mine[["good_share", "late_share"]].min(axis=1) >= 0.9
            assert (kept == mine.meets).all()
    assert len(runs[runs.step == "curve"]) == 2 * 2 * 2
    assert found["simulations"] == len(runs)
    for name in ("goodput.png", "goodput.pdf", "report.html", "manifest.json"):
        assert (out / name).stat().st_size > 500
    assert found["verdict"]["sentence"] in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["policies=[raw,int5]"], "bitrate=int5 is not known"),
        (["policies=[]"], "give each policy once"),
        (["policies=[raw,raw]"], "give each policy once"),
        (["bitrate=raw"], "bitrate=raw: this verb compares several policies"),
        (["goal_share=0"], "goal_share is 0"),
        (["goal_share=1.5"], "goal_share is 1.5"),
        (["max_distortion=-1"], "max_distortion is -1"),
        (["requests=3"], "requests is 3"),
        (["repeats=1"], "repeats is 1"),
        (["tolerance=0"], "tolerance is 0"),
        (["curve_rates=-1"], "curve_rates is -1"),
        (["workers=0"], "workers is 0"),
        (["workload=closed_loop"], "a closed loop has no rate"),
        (["workload.requests=100"], "give requests=N"),
        (["workload=mooncake", "requests=9000"], "the workload has 12,031 requests; repeats=4 parts of requests=9000 need 36,000"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [] if any(argument.startswith("workload=") for argument in arguments) else ["workload=poisson"]
    assert part in refused(["capacity", *small, *arguments, "out=results"], tmp_path, capsys)

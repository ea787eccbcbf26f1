"""`abkt adaptation` in the simulator, as a user calls it: its results and the input that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.cli import dispatch
from experiments.lib.results import read_json
from experiments.verbs import adaptation

SMALL = ["repeats=2", "bits=[2]", "workload.scaling.requests=20"]


@pytest.fixture(scope="module")
def contest(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("contest")
    adaptation.main(["network=wan_drop", f"profile={study / 'profile.json'}", *SMALL, f"out={out}"])
    return out


def compared(folder: Path) -> dict[str, Any]:
    (match,) = read_json(folder / "adaptation.json")["comparisons"]
    return match


def test_every_row_keeps_the_bounds_or_is_named(contest: Path) -> None:
    match = compared(contest)
    most = match["mean_distortion"]
    for name, row in match["rows"].items():
        if name not in ("limit", *match["missing"]):
            assert row["distortion_mean"] <= most * (1 + 1e-9)
            assert row["distortion_p99"] <= 8 * most
    assert {"fixed", "equal", "equal, refined", "spend", "cachegen, told D", "embedded", "fleet", "oracle", "limit"} <= match["rows"].keys()
    parts = {name for name in match["rows"] if name.startswith("embedded, ")}
    assert parts == {f"embedded, {part}" for part in ("equal bits", "no refinement", "fixed coder alone", "blind to the link")}


def test_nothing_beats_the_limit_beyond_the_interval(contest: Path) -> None:
    """Nor is embedded better than the oracle, which knows what embedded estimates."""
    match = compared(contest)
    for name, pairs in match["against"].items():
        for figure, worst in (("ttft_mean", "high"), ("within_slo", "low")):
            interval = pairs["limit"][figure]
            assert interval[worst] >= 1 if figure == "ttft_mean" else interval[worst] <= 0, (name, figure)
    limit = match["rows"]["limit"]
    for row in match["rows"].values():
        assert row["ttft_mean_s"] >= limit["ttft_mean_s"] * (1 - 1e-9)
        assert row["within_slo"] <= limit["within_slo"]
    assert match["against"]["embedded"]["oracle"]["on_slo"] != "win"


def test_the_slo_is_stated_first_and_no_policy_changes_it(
    contest: Path, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    told = read_json(contest / "adaptation.json")
    assert told["slo"]["ttft_s"] == pytest.approx(2 * told["slo"]["alone_s"], rel=0.05)
    adaptation.main(
        [
            "network=wan_drop",
            "parts=false",
            "coders=[fixed]",
            "rows=[equal,embedded]",
            f"profile={study / 'profile.json'}",
            *SMALL,
            f"out={tmp_path}",
        ]
    )
    said = capsys.readouterr().out
    assert said.index("SLO: TTFT") < said.index("policy")
    other = read_json(tmp_path / "adaptation.json")
    assert other["slo"] == told["slo"]
    assert list(compared(tmp_path)["rows"]) == ["fixed", "equal", "embedded"]
    assert not any("entropy" in setting for setting in compared(tmp_path)["settings"].values())
    assert "exposed p99" not in said  # 20 requests have no p99
    answer = compared(tmp_path)["winner"]
    assert ("Use " if answer["told_apart"] else "take ") in "".join(said.splitlines()[-4:])
    assert "Who wins" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "manifest.json").exists()


@pytest.mark.slow
def test_several_receivers_share_the_prefill_node_s_link(study: Path, tmp_path: Path) -> None:
    """They have no bandwidth of their own: what waits for the link waits about as long as with one of them."""
    mean_s = []
    for receivers in (1, 4):
        out = tmp_path / str(receivers)
        adaptation.main(["network=10m", f"receivers={receivers}", "parts=false", f"profile={study / 'profile.json'}", *SMALL, f"out={out}"])
        mean_s.append(compared(out)["rows"]["fixed"]["exposed_mean_s"])
        assert compared(out)["even_against_first"]["fleet, even"]["distortion_mean"]["ratio"] <= 1
    assert mean_s[1] == pytest.approx(mean_s[0], rel=0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("repeats=0", "repeats is 0; it must be 1 to"),
        ("world=paper", "world is 'paper'"),
        ("workload.scaling.requests=null", "must be a number"),
        ("profile=nowhere.json", "nowhere.json"),
        ("receivers=0", "receivers is 0"),
        ("world=real receivers=2", "more than 1 needs world=simulated"),
        ("ours=null", "ours"),
        ("slo_factor=0.5", "slo_factor is 0.5"),
        ("coders=[]", "coders is []; give each coder once"),
        ("coders=[fixed,fixed]", "give each coder once"),
        ("coders=[zip]", "coders"),
        ("rows=[best]", "rows has 'best'; the rows are fixed; uniform"),
        ("margin.ttft=2", "ttft is 2"),
    ],
)
def test_refused_in_one_line(override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["adaptation", *override.split(), f"out={tmp_path / 'out'}"]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1

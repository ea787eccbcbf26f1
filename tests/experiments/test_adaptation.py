"""`abkt adaptation` in the simulator, as a user calls it: its results and the input that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli import dispatch
from experiments.lib.results import read_json
from experiments.verbs import adaptation

SMALL = ["repeats=2", "bits=[2]", "workload.scaling.requests=40"]


def test_embedded_keeps_the_bounds_and_meets_the_slo_more_often(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adaptation.main(["network=wan_oscillating", f"profile={study / 'profile.json'}", *SMALL, f"out={tmp_path}"])
    (match,) = read_json(tmp_path / "adaptation.json")["comparisons"]
    fixed, embedded = match["rows"]["fixed"], match["rows"]["embedded"]
    assert fixed["within_slo"] == pytest.approx(0.9, abs=0.02)
    assert embedded["distortion_mean"] <= fixed["distortion_mean"]
    assert embedded["distortion_p99"] <= 8 * fixed["distortion_mean"]
    assert embedded["within_slo"] > fixed["within_slo"]
    assert match["exposed_p99_against"]["fixed"]["embedded"]["ratio"] < 1
    said = capsys.readouterr().out
    assert "embedded: p99 exposed" in said
    answer = match["winner"]
    assert answer["policy"] == min((n for n in match["rows"] if n not in ("oracle", "fleet, even") and n not in match["missing"]),
                                   key=lambda n: match["rows"][n]["ttft_mean_s"])  # fmt: skip
    assert ("Use " if answer["told_apart"] else "cannot be told apart") in said.splitlines()[-2] + said.splitlines()[-3]
    assert "Who wins" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "manifest.json").exists()


def test_several_receivers_share_the_prefill_node_s_link(study: Path, tmp_path: Path) -> None:
    """They have no bandwidth of their own: what waits for the link waits about as long as with one of them."""
    worst_s = []
    for receivers in (1, 4):
        out = tmp_path / str(receivers)
        adaptation.main(["network=10m", f"receivers={receivers}", f"profile={study / 'profile.json'}", *SMALL, f"out={out}"])
        (match,) = read_json(out / "adaptation.json")["comparisons"]
        worst_s.append(match["rows"]["fixed"]["exposed_p99_s"])
        assert match["even_against_first"]["fleet, even"]["distortion_mean"]["ratio"] <= 1
    assert worst_s[1] == pytest.approx(worst_s[0], rel=0.5)


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
    ],
)
def test_refused_in_one_line(override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["adaptation", *override.split(), f"out={tmp_path / 'out'}"]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1

"""`abkt study` with real processes and a tiny model: everything that a reader looks for is there, and was predicted first."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from experiments.cli import dispatch

FEW = (
    *("~bitrate@bitrates.int3", "~bitrate@bitrates.cachegen", "~bitrate@bitrates.fleet", "~bitrate@bitrates.embedded"),
    *("scaleout.workload.scaling.requests=10", "minutes=1", "scaleout.workers=1"),
)


@pytest.mark.slow
def test_a_study_predicts_first_and_answers_in_one_of_three_ways(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert dispatch(["study", f"model={tiny_model}", *FEW, f"out={out}"]) == 0
    said = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    verdict, chosen = summary["verdict"], summary["scaling"]
    assert verdict["kind"] in ("use", "tie", "no_answer")
    assert (verdict["policy"] is None) == (verdict["kind"] == "no_answer")
    assert verdict["sentence"] in " ".join(said.split())
    assert " ".join(summary["trust"]["sentence"].split()) in " ".join(said.split())
    planned = summary["utilisation"]["planned"]["prefill"]
    lowered = any("rate was lowered" in sentence for sentence in summary["chosen"])  # coding costs this model more than prefill
    assert planned == pytest.approx(summary["load"], abs=0.1) or (lowered and planned < summary["load"])
    assert summary["repeats"] >= 3
    for policy in ("raw", "int8", "int4"):
        runs = [
            json.loads((out / "twin" / "real" / policy / str(r) / "summary.json").read_text()) for r in range(1, summary["repeats"] + 1)
        ]
        assert all(run["requests"]["initiated"] == chosen["requests"] for run in runs)
        assert {run["compute_dtype"] for run in runs} == {"float32"}
    predictions = json.loads((out / "predictions.json").read_text())
    first_real_s = min(path.stat().st_mtime for path in (out / "twin" / "real").rglob("*.parquet"))
    assert datetime.fromisoformat(predictions["created"]).timestamp() < first_real_s
    assert set(predictions["policies"]) == {"raw", "int8", "int4"}
    assert (out / "report.html").is_file()


def test_a_load_above_what_a_queue_can_bear_is_refused_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["study", "load=1.2", f"out={tmp_path / 'out'}"]) == 2
    assert "load is 1.2; it must be 0.05 to 0.95" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

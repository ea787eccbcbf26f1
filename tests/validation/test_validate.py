"""`abkt validate`: bad input in one line; a whole validation on real processes of a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from experiments.cli import dispatch


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compute=fast"], "compute=fast is not known; compute is one of gpu, paced, real"),
        (["device=tpu"], "device is tpu; it must be cpu or cuda"),
        (["device=cuda"], "two phases would share one GPU's time; add compute=paced, or take compute=gpu"),
        (["compute=gpu"], "device=cuda: this machine has no GPU that PyTorch can use"),
        (["model_folder=null"], "give model_folder, or null and the shape"),
        (["conditions.thin.network.loss=0.1"], "condition thin: network.loss is 0.1; the model loses no packets"),
        (["compute=paced", "conditions.incast.prefill=3"], "condition incast: 3 prefill workers are not the 4 senders of its network"),
        (["compute=paced", "conditions.several.network.delay_s=0.01"], "condition several: a delay goes with one decode worker"),
        (
            ["compute=paced", "conditions.switches.roles.changes=[{at_s: 1, worker: d9, role: prefill}]"],
            "there is no node d9; there are d0",
        ),
        (["compute=paced", "+roles@conditions.incast.roles=colocated"], "condition incast: roles Colocated runs whole requests on one"),
        (["prefill=2"], "2P1D with compute=real would share cores; add compute=paced"),
        (["repeats=0"], "must be at least 1"),
        (["targets={e2e: 0.1}", "~targets.ttft"], "targets lacks ttft"),
        (["profile=/nowhere/profile.json", "model_folder=/nowhere"], "/nowhere"),
        (["+bitrate@bitrates.int3=int3"], "int3"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert dispatch(["validate", *arguments, "out=results"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_whole_validation(tiny_model: Path, tmp_path: Path) -> None:
    small = [
        "requests=4",
        "repeats=2",
        "~conditions.oscillating",
        "~conditions.thin",
        "~bitrates.int8",
        "~bitrates.embedded",
        "drift=false",
    ]
    small += ["workload.scaling.isl_max=300"]
    assert dispatch(["validate", f"model_folder={tiny_model}", *small, f"out={tmp_path / 'out'}"]) == 0
    rows = pd.read_parquet(tmp_path / "out" / "validation.parquet")
    assert set(rows.policy) == {"raw", "int4"}
    assert set(rows.condition) == {"steady"}
    assert (rows[rows.stage == "e2e"].measured_s > 0).all()
    found = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert {target["name"] for target in found["targets"]} == {"mean E2E error", "mean TTFT error", "largest regret"}
    assert "# Fidelity of the model" in (tmp_path / "out" / "FIDELITY.md").read_text()

"""`abkt validate`: bad input in one line; a whole validation on real processes of a tiny model."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from abkt.net.namespaces import Namespaces
from experiments.cli import dispatch
from experiments.validation.__main__ import text
from tests.experiments.refused import refused
from tests.serve.test_paced import profile


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compute=fast"], "compute=fast is not known; compute is one of gpu, paced, real"),
        (["device=tpu"], "device is tpu; it must be cpu or cuda"),
        (["device=cuda"], "two phases would share one GPU's time; add compute=paced, or take compute=gpu"),
        (["compute=gpu"], "device=cuda: this machine has no GPU that PyTorch can use"),
        (["model_folder=null"], "give model_folder, or null and the shape"),
        (["conditions.thin.network.loss=0.1"], "condition thin: network.loss is 0.1; the simulator loses no packets"),
        (["compute=paced", "conditions.incast.prefill=3"], "condition incast: 3 prefill workers are not the 4 senders of its network"),
        (["compute=paced", "conditions.load_85.network.delay_s=0.01"], "condition load_85: a delay needs one decode worker"),
        (
            ["compute=paced", "conditions.switches.roles.changes=[{at_s: 1, worker: d9, role: prefill}]"],
            "there is no node d9; the nodes are d0",
        ),
        (["compute=paced", "+roles@conditions.incast.roles=colocated"], "condition incast: roles Colocated runs whole requests on one"),
        (["prefill=2"], "2P1D with compute=real would share cores; add compute=paced"),
        (["repeats=0"], "repeats is 0; it must be 1 to"),
        (["targets={e2e: 0.1}", "~targets.ttft"], "targets lacks ttft"),
        (["profile=/nowhere/profile.json", "model_folder=/nowhere"], "/nowhere"),
        (["+bitrate@bitrates.int5=int5"], "int5"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert words in refused(["validate", *arguments, "out=results"], tmp_path, capsys)


LOADS = ("~conditions.load_70", "~conditions.load_85", "~conditions.load_95")


@pytest.mark.slow
def test_a_whole_validation(tiny_model: Path, tmp_path: Path) -> None:
    small = [
        "requests=4",
        "repeats=2",
        "~conditions.load_70",
        "~conditions.load_95",
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
    assert set(rows.condition) == {"load_85"}
    assert (rows[rows.stage == "e2e"].measured_s > 0).all()
    found = json.loads((tmp_path / "out" / "validation.json").read_text())
    queue = "mean queueing error at 85 % utilisation"
    assert {target["name"] for target in found["targets"]} == {"mean E2E error", "mean TTFT error", queue, "largest regret"}
    assert {target["answer"] for target in found["targets"]} == {"cannot_tell"}, "four requests are a handful"
    assert found["loads"]["load_85"]["planned"] == pytest.approx(0.85)
    assert found["loads"]["load_85"]["measured"] > 0
    document = (tmp_path / "out" / "VALIDATION.md").read_text()
    assert "# Validation of the simulator" in document
    assert found["trust"] in document
    assert "circular" not in document
    assert found["trust"] in (tmp_path / "out" / "report.html").read_text()
    said = json.loads((tmp_path / "out" / "predictions.json").read_text())
    runs = list((tmp_path / "out" / "real").rglob("requests.parquet"))
    assert said["predicted_at"][:19] < min(datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat() for path in runs)
    assert {(row["condition"], row["policy"]) for row in said["predictions"]} == {("load_85", "raw"), ("load_85", "int4")}
    assert text([tmp_path / "out"]).startswith("| condition | utilisation planned, measured |")


@pytest.mark.slow
def test_senders_that_meet_and_workers_that_change_their_role(tiny_model: Path, tmp_path: Path) -> None:
    """Paced, on a made-up profile: both worlds have the same workers do the same changes."""
    if why := Namespaces.why_not():
        pytest.skip(why)
    profile(tiny_model).save(tmp_path / "profile.json")
    changes = "[{at_s: 0.5, worker: d1, role: prefill}, {at_s: 2.0, worker: d1, role: decode}]"
    small = ["compute=paced", "requests=16", "repeats=2", "drift=false", *LOADS, "~bitrates.int8", "~bitrates.embedded"]
    small += [f"conditions.switches.roles.changes={changes}", f"profile={tmp_path / 'profile.json'}", "workload.scaling.isl_max=300"]
    assert dispatch(["validate", f"model_folder={tiny_model}", *small, f"out={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert {(c["condition"], c["stage"]) for c in found["conditions"]} == {
        (c, s) for c in ("incast", "switches") for s in ("queue", "ttft", "e2e")
    }
    assert [(c["worker"], c["role"]) for c in found["switches"]] == [("d1", "prefill"), ("d1", "decode")]
    for change in found["switches"]:
        assert change["predicted_served"] > 0
        assert change["measured_served"] > 0
        assert change["measured_drain_s"] >= 0
    summary = json.loads((tmp_path / "out" / "real" / "switches" / "raw" / "1" / "summary.json").read_text())
    assert [(worker, role) for _, worker, role in summary["roles"]] == [("d1", ""), ("d1", "prefill"), ("d1", ""), ("d1", "decode")]
    shared = json.loads((tmp_path / "out" / "real" / "incast" / "raw" / "0" / "summary.json").read_text())
    assert (shared["network"]["pacing"], shared["network"]["senders"], shared["compute"]) == ("tbf", 4, "paced")
    rows = pd.read_parquet(tmp_path / "out" / "real" / "incast" / "raw" / "0" / "requests.parquet")
    assert {*rows.prefill_node} == {"p0", "p1", "p2", "p3"}
    text = (tmp_path / "out" / "VALIDATION.md").read_text()
    assert "## Changes of roles" in text
    assert "a token bucket" in text
    assert found["circular"] == ["prefill", "decode"]
    assert text.count("circular for prefill and decode") >= 5


@pytest.mark.slow
def test_a_model_of_a_shape_without_a_gpu(tmp_path: Path) -> None:
    """What `compute=gpu` does, but for the device: the model is made, profiled, paced by its own times."""
    shape = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 32, "inner": 96, "vocabulary": 4096, "max_tokens": 1024}
    small = [*(f"shape.{key}={value}" for key, value in shape.items()), "requests=4", "repeats=1", "~conditions.oscillating"]
    small += ["~bitrates.int8", "~bitrates.int4", "workload.scaling.isl_max=300", "conditions.steady.speedup=0.7"]
    assert dispatch(["validate", "compute=gpu", "device=cpu", *small, f"out={tmp_path}"]) == 0
    config = json.loads((tmp_path / "llama-3.1-8b" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["vocab_size"]) == (2, 4096)
    assert set(pd.read_parquet(tmp_path / "validation.parquet").policy) == {"raw", "embedded"}
    rows = pd.read_parquet(tmp_path / "real" / "steady" / "raw" / "0" / "requests.parquet")
    assert (rows.outcome == "completed").all()
    assert set(rows.compute) == {"paced"}

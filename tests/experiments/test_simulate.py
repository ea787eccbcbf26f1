"""The verb simulate, from the command line to its files."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import dispatch
from experiments.lib.paths import ROOT
from experiments.lib.results import read_records

FEW = ["workload.scaling.requests=12", "progress=false"]


def test_results_are_in_out_and_agree_with_each_other(curves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert dispatch(["simulate", f"curves={curves}", f"out={out}", "bitrate=int4", "routing=random", *FEW]) == 0
    assert capsys.readouterr().out.startswith("plan: 12 requests over ")
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "requests.parquet", "summary.json", "transfers.parquet"]
    summary, manifest = (json.loads((out / f"{name}.json").read_text()) for name in ("summary", "manifest"))
    requests, transfers = (read_records(out / f"{name}.parquet") for name in ("requests", "transfers"))
    assert (summary["bitrate"], summary["routing"], summary["validated"]) == ("int4", "random", False)
    assert summary["requests"]["initiated"] == len(requests) == 12
    assert summary["wire_bytes"] == transfers.wire_bytes.sum()
    assert summary["ttft_s"]["mean"] == pytest.approx(requests.ttft_s.mean())
    assert summary["scaling"]["requests_in_trace"] == 12031
    assert (requests.compute == "simulated").all()
    assert manifest["config"]["bitrate"] == {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": 4}
    assert [item["name"] for item in manifest["inputs"]] == ["mooncake_conversation.jsonl.gz", "probe.json"]


def test_the_same_seed_gives_the_same_requests(curves: Path, tmp_path: Path) -> None:
    for name in ("one", "two", "other"):
        seed = 5 if name == "other" else 4
        arguments = ["workload=poisson", "workload.requests=8", f"seed={seed}", "routing=random", "progress=false"]
        assert dispatch(["simulate", f"curves={curves}", f"out={tmp_path / name}", *arguments]) == 0
    one, two, other = (read_records(tmp_path / name / "requests.parquet") for name in ("one", "two", "other"))
    assert one.equals(two)
    assert not one.arrival_s.equals(other.arrival_s)


def test_the_default_folder_is_below_outputs(curves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # in the same second or not
        assert dispatch(["simulate", f"curves={curves}", *FEW]) == 0
    folders = list((tmp_path / "outputs" / "simulate").iterdir())
    assert len(folders) == 2
    assert all((folder / "summary.json").is_file() for folder in folders)


def test_multirun_gives_each_combination_a_folder(curves: Path, tmp_path: Path) -> None:
    out = tmp_path / "many runs"
    assert dispatch(["simulate", "-m", f"curves={curves}", f"out={out}", "bitrate=raw,int4", "network.gbps=10,25", *FEW]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["0", "1", "2", "3", "multirun.yaml"]
    found = set()
    for number in range(4):
        folder = out / str(number)
        assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "requests.parquet", "summary.json", "transfers.parquet"]
        manifest = json.loads((folder / "manifest.json").read_text())
        found.add((json.loads((folder / "summary.json").read_text())["bitrate"], manifest["config"]["network"]["gbps"]))
    assert found == {("raw", 10), ("raw", 25), ("int4", 10), ("int4", 25)}


def test_multirun_leaves_the_loggers_as_they_are(curves: Path, tmp_path: Path) -> None:
    """Hydra's logging must not silence warnings of ABKT."""
    log = logging.getLogger("abkt.a_room")
    assert dispatch(["simulate", "-m", f"curves={curves}", f"out={tmp_path / 'out'}", "bitrate=raw,int4", *FEW]) == 0
    assert not log.disabled
    assert log.isEnabledFor(logging.WARNING)


def test_a_failing_run_of_many_is_one_line(curves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", "-m", f"curves={curves}", f"out={tmp_path / 'out'}", "cluster.decode=1,0", *FEW]
    assert dispatch(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "abkt: cluster.decode is 0; it must be 1 to 100,000"


def test_a_link_that_drops_makes_transfers_longer(curves: Path, tmp_path: Path) -> None:
    """A tenth of the link all the time but the first second: the same bytes take longer, and nothing else does."""
    steady, drop = tmp_path / "steady", tmp_path / "drop"
    same = [f"curves={curves}", "bitrate=raw", "routing=round_robin", *FEW]
    assert dispatch(["simulate", f"out={steady}", "network=constant", *same]) == 0
    assert dispatch(["simulate", f"out={drop}", "network=mid_drop", "network.starts_s=[0,1,3599]", "network.period_s=3600", *same]) == 0
    one, other = (read_records(folder / "requests.parquet") for folder in (steady, drop))
    assert one.wire_bytes.equals(other.wire_bytes)
    assert one.prefill_busy_s.equals(other.prefill_busy_s)
    assert other.wire_busy_s.sum() > 5 * one.wire_busy_s.sum()


def test_the_same_seed_gives_the_same_bytes_in_another_process(curves: Path, tmp_path: Path) -> None:
    """Sets and hashes of strings differ from process to process; nothing in the files may."""
    arguments = ["simulate", f"curves={curves}", "cluster=2p2d", "bitrate=embedded", "routing=load_aware", "trace=true", *FEW]
    for name, hash_seed in (("one", "1"), ("two", "2")):
        command = [sys.executable, "-m", "experiments.cli", *arguments, f"out={tmp_path / name}"]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed})
    for name in ("requests.parquet", "transfers.parquet", "trace.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    events = json.loads((tmp_path / "one" / "trace.json").read_text())["traceEvents"]
    assert {event["args"]["request"] for event in events if event["ph"] == "X"} == set(range(12))


def test_a_tiny_run_loads_no_torch(curves: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from experiments.cli import dispatch; code = dispatch(sys.argv[1:]);"
        "print('loaded:', *(m for m in ('torch', 'triton', 'transformers', 'scipy', 'matplotlib') if m in sys.modules)); sys.exit(code)"
    )
    arguments = ["simulate", f"curves={curves}", f"out={tmp_path / 'out'}", *FEW]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_predictions_come_with_intervals(curves: Path, tmp_path: Path) -> None:
    """On kernels that others have measured; a data sheet has no error to speak of, and says so."""
    for name, given in (("kernels", []), ("sheet", ["hardware.kernels=null"])):
        assert dispatch(["simulate", f"curves={curves}", f"out={tmp_path / name}", *given, *FEW]) == 0
    kernels, sheet = (json.loads((tmp_path / name / "summary.json").read_text())["prediction"] for name in ("kernels", "sheet"))
    requests = read_records(tmp_path / "kernels" / "requests.parquet")
    assert ((requests.ttft_low_s < requests.ttft_s) & (requests.ttft_s < requests.ttft_high_s)).all()
    assert kernels["e2e_half_width_s"] == pytest.approx(((requests.e2e_high_s - requests.e2e_low_s) / 2).mean())
    assert kernels["error_unknown"] == ["encode", "expand", "wire"]
    assert sheet["e2e_half_width_s"] == 0
    assert len(sheet["error_unknown"]) == 6


def test_decode_nodes_may_be_other_hardware(curves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A GPU with three times the bandwidth decodes faster; prefill does not notice. A model must fit on both."""
    same = [f"curves={curves}", "bitrate=raw", "routing=round_robin", "hardware=l40s", *FEW]
    for name, given in (("alike", []), ("mixed", ["+hardware@decode_hardware=h200"])):
        assert dispatch(["simulate", f"out={tmp_path / name}", *same, *given]) == 0
    assert "1 x L40S each, not validated on hardware to prefill, 1 x H200 SXM each" in capsys.readouterr().out
    alike, mixed = (read_records(tmp_path / name / "requests.parquet") for name in ("alike", "mixed"))
    assert alike.prefill_busy_s.equals(mixed.prefill_busy_s)
    assert alike.tpot_s.mean() > 2 * mixed.tpot_s.mean()
    others = [word for word in same if not word.startswith("hardware=")]
    assert (
        dispatch(["simulate", f"out={tmp_path / 'no'}", *others, "+hardware@decode_hardware=l4", "model=qwen3-32b", "hardware=h200"]) == 2
    )
    assert "does not fit on 1 x L4" in capsys.readouterr().err

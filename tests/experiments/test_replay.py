"""`abkt replay` and `abkt profile` as a user calls them, on a tiny model: their results and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from experiments.lib.paths import ROOT
from experiments.lib.results import read_records
from tests.experiments.announcing import FILE

TINY = ["workload.scaling.isl_max=600", "workload.scaling.osl_max=8", "workload.scaling.osl_min=4"]


def abkt(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def wait_for(condition, seconds: float = 120.0) -> None:
    """Bounded, so that a hang is a failure."""
    until_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until_s, "it never came"
        time.sleep(0.05)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # others come and go, such as those that lay links
            if any("abkt.serve." in part for part in child.cmdline()):
                found.append(child)
    return found


def test_replay_writes_complete_records(tiny_model: Path, tmp_path: Path) -> None:
    process = abkt("replay", f"model_folder={tiny_model}", "bitrate=int4", "workload.scaling.requests=4", *TINY, f"out={tmp_path / 'out'}")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    requests = read_records(tmp_path / "out" / "requests.parquet")
    assert list(requests.outcome) == ["completed"] * 4
    assert (requests.wire_bytes < requests.raw_bytes).all()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["requests"] == {"initiated": 4, "completed": 4, "rejected": 0, "failed": 0}
    assert {"manifest.json", "transfers.parquet"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert not list((tmp_path / "out").glob("*.part"))


@pytest.mark.slow
def test_replay_runs_many_workers_in_a_closed_loop_with_a_change_of_roles(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["prefill=2", "decode=2", "routing=least_loaded", "workload.concurrency=3", "changes=[{at_s: 0.5, worker: p1, role: decode}]"]
    process = abkt("replay", f"model_folder={tiny_model}", "bitrate=int8", "workload.scaling.requests=24", *more, *TINY, f"out={out}")
    said, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "of 3 clients in a closed loop through 2 prefill and 2 decode processes" in said
    requests = read_records(out / "requests.parquet")
    assert list(requests.outcome) == ["completed"] * 24
    assert {"p1"} < set(requests.prefill_node) | set(requests.decode_node)
    assert json.loads((out / "summary.json").read_text())["near_ties"]["tokens"] == requests.osl.sum()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["decode=2", "pacing=socket", "network=wan_10ms"], "network.delay_s=0.01 needs network namespaces: pacing is socket"),
        (["paced=nowhere.json"], "profile nowhere.json does not exist; make one with `abkt profile out=DIR`"),
        (["decode=0"], "decode is 0; it must be 1 to 1,000"),
    ],
)
def test_replay_refuses_bad_input_before_anything_is_written(tiny_model: Path, tmp_path: Path, given: list[str], said: str) -> None:
    from experiments.verbs.replay import main

    with pytest.raises(ValueError, match=re.escape(said)):
        main([f"model_folder={tiny_model}", *given, f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("victim", "running", "signal_", "code"),
    [
        ("worker", False, signal.SIGKILL, 1),
        pytest.param("worker", True, signal.SIGKILL, 1, marks=pytest.mark.slow),  # see test_a_dead_worker_is_named_and_the_others_end
        ("frontend", True, signal.SIGINT, 130),
    ],
    ids=["a worker that starts", "a worker", "the frontend"],
)
def test_a_broken_run_keeps_what_was_finished_and_leaves_no_process(
    tiny_model: Path, tmp_path: Path, victim: str, running: bool, signal_: signal.Signals, code: int
) -> None:
    out, announced = tmp_path / "out", tmp_path / "announced"
    bitrate = ["bitrate=raw", "bitrate._target_=tests.experiments.announcing.AnnouncingRaw"]
    arguments = [f"model_folder={tiny_model}", *bitrate, "workload.scaling.requests=40", *TINY, f"out={out}"]
    process = abkt("replay", *arguments, cwd=ROOT, env={**os.environ, FILE: str(announced)})
    wait_for(announced.exists if running else lambda: len(workers(process)) >= 1)
    started = workers(process)
    os.kill(process.pid if victim == "frontend" else started[0].pid, signal_)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    said = [line for line in errors.splitlines() if line.startswith("abkt: ")]
    assert len(said) == 1
    assert "Traceback" not in errors
    if victim == "worker":
        assert "worker d0 ended" in said[0]
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []


def test_a_model_folder_without_a_config_is_one_line(tmp_path: Path) -> None:
    process = abkt("profile", f"model_folder={tmp_path}", f"out={tmp_path / 'out'}")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (
        errors.strip()
        == f"abkt: model folder {tmp_path} has no config.json; give a Hugging Face folder, or make one with `abkt train-probe`"
    )
    assert not (tmp_path / "out").exists()

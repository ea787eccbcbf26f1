"""`abkt serve` as a user starts it: on a tiny model, over HTTP, and what it refuses before anything starts."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from experiments.lib.results import read_records
from experiments.verbs.serve import main
from tests.experiments.test_replay import abkt, workers
from tests.serve.test_engine import generate


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


@pytest.mark.slow
def test_a_service_answers_outlives_a_worker_and_leaves_records_but_no_process(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = abkt("serve", f"model_folder={tiny_model}", "port=0", "bitrate=raw", "prefill=1", "decode=2", f"out={out}")
    assert process.stdout is not None
    where = re.search(r"http://\S+:\d+", process.stdout.readline())
    assert where is not None
    prompt = [(3 * i) % 2048 for i in range(70)]
    asked = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
    expected = generate(tiny_model, prompt, 12)
    url = f"{where[0]}/v1/completions"
    assert ask(url, asked)["choices"][0]["token_ids"] == expected
    drawn = [ask(url, {**asked, "temperature": 1.0, "seed": 5})["choices"][0]["token_ids"] for _ in range(3)]
    assert drawn[0] == drawn[1] == drawn[2] != expected
    os.kill(next(w.pid for w in workers(process) if any('"name": "p0"' in part for part in w.cmdline())), signal.SIGKILL)
    assert ask(url, asked)["choices"][0]["token_ids"] == expected  # by another one, which was started
    assert ask(f"{where[0]}/health")["prefill"] == ["p1"]
    started = workers(process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
    assert list(read_records(out / "requests.parquet").outcome) == ["completed"] * 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["host=0.0.0.0"], "host 0.0.0.0 is not loopback, so clients need a key: give key_file=FILE"),
        (["host=example.org"], "host 'example.org' must be an IP address or localhost"),
        (["port=70000"], "port is 70000; it must be 0 to 65,535"),
        (["max_waiting=0"], "max_waiting is 0; it must be at least 1"),
        (["key_file=nowhere"], "key file nowhere cannot be read"),
        (["prefill=0"], "prefill is 0; it must be 1 to 1,000"),
        (["model_folder=nowhere"], "model=nowhere is neither a folder"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(tiny_model: Path, tmp_path: Path, given: list[str], said: str) -> None:
    model = [] if given[0].startswith("model_folder=") else [f"model_folder={tiny_model}"]
    with pytest.raises(ValueError, match=re.escape(said)):
        main([*model, f"out={tmp_path / 'out'}", *given])
    assert not (tmp_path / "out").exists()


def test_a_key_file_must_be_private_and_valid(tiny_model: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("short")
    key.chmod(0o600)
    with pytest.raises(ValueError, match="must hold 16 to 256 letters without a space"):
        main([f"model_folder={tiny_model}", f"key_file={key}"])
    key.write_text("x" * 32)
    key.chmod(0o604)
    with pytest.raises(ValueError, match=r"is open to every user \(mode 0604\)"):
        main([f"model_folder={tiny_model}", f"key_file={key}"])

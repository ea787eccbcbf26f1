"""A worker process as its frontend sees it. A frozen worker is noticed and blocks nothing. The tests set the time themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue

import pytest

from abkt.serve.commands import Ping, Prepare, WorkerConfig
from abkt.serve.errors import WorkerDied
from abkt.serve.frontend.process import PING_S, SILENCE_S, START_SILENCE_S, Events, WorkerProcess
from abkt.serve.frontend.workers import START_S, Workers


def test_a_frozen_worker_blocks_nothing_and_is_killed_after_its_silence_limit(tmp_path: Path) -> None:
    events: Events = SimpleQueue()
    worker = WorkerProcess(WorkerConfig("p0", "prefill", "nowhere", 1, 16, 1), tmp_path, events)
    os.kill(worker.pid, signal.SIGSTOP)
    started_s = time.monotonic()
    for _ in range(40):
        worker.tell(Prepare(tuple(range(20_000))))  # far more than a pipe holds
    for i in range(20):
        now_s = started_s + i * PING_S
        worker.watch(now_s)
        if now_s < started_s + SILENCE_S:
            assert not worker.killed
    assert worker.killed
    assert events.get(timeout=30) == ("p0", None)
    assert str(worker.death()).startswith(f"worker p0 did not answer for {SILENCE_S:g} s and was killed")
    with pytest.raises(WorkerDied):
        worker.tell(Ping())
    worker.end(ask=False)


def test_a_frontend_that_was_itself_stopped_kills_no_worker(tmp_path: Path) -> None:
    worker = WorkerProcess(WorkerConfig("p0", "prefill", "nowhere", 1, 16, 1), tmp_path, SimpleQueue())
    os.kill(worker.pid, signal.SIGSTOP)
    worker.watch(time.monotonic() + 60.0)  # a minute later the frontend asks for the first time
    assert not worker.killed
    worker.end(ask=False)
    assert worker.ended


def test_a_worker_that_freezes_while_it_starts_is_killed_long_before_its_start_limit(tmp_path: Path, monkeypatch) -> None:
    workers = Workers(lambda name, role, number: WorkerConfig(name, role, "nowhere", 1, 16, 1), tmp_path)
    workers.start("p0", "prefill")
    frozen = workers.states["p0"].process
    os.kill(frozen.pid, signal.SIGSTOP)
    started_s = time.monotonic()
    try:
        for after_s in (0.0, 0.6, 1.2, START_SILENCE_S - 5.0, START_SILENCE_S + 5.0):
            assert not frozen.killed
            monkeypatch.setattr("abkt.serve.frontend.workers.time.monotonic", lambda now_s=started_s + after_s: now_s)
            workers.watch()
        assert frozen.killed
        assert START_SILENCE_S + 5.0 < START_S / 4
        monkeypatch.undo()
        assert workers.events.get(timeout=30) == ("p0", None)
        assert str(workers.lost("p0")).startswith(f"worker p0 did not answer for {START_SILENCE_S:g} s and was killed")
    finally:
        workers.close(ask=False)


def test_a_starting_worker_can_answer_before_torch_is_loaded() -> None:
    code = "import sys, abkt.serve.worker.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_that_sends_a_damaged_line_is_killed_and_named(tmp_path: Path) -> None:
    events: Events = SimpleQueue()
    speaks = [sys.executable, "-c", "import time; print('nonsense', flush=True); time.sleep(600)"]
    worker = WorkerProcess(WorkerConfig("p0", "prefill", "nowhere", 1, 16, 1), tmp_path, events, launcher=speaks)
    assert events.get(timeout=30) == ("p0", None)
    assert str(worker.death()).startswith("worker p0 sent a damaged line (a message is not JSON: JSONDecodeError) and was killed")
    worker.end(ask=False)

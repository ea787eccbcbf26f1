"""A worker process as its frontend sees it. A frozen worker is noticed and blocks nothing. The tests set the time themselves."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from queue import SimpleQueue

import pytest

from abkt.serve.commands import Ping, Prepare, WorkerConfig
from abkt.serve.errors import WorkerDied
from abkt.serve.frontend.process import PING_S, SILENCE_S, Events, WorkerProcess


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


def test_a_worker_that_sends_a_damaged_line_is_killed_and_named(tmp_path: Path) -> None:
    events: Events = SimpleQueue()
    speaks = [sys.executable, "-c", "import time; print('nonsense', flush=True); time.sleep(600)"]
    worker = WorkerProcess(WorkerConfig("p0", "prefill", "nowhere", 1, 16, 1), tmp_path, events, launcher=speaks)
    assert events.get(timeout=30) == ("p0", None)
    assert str(worker.death()).startswith("worker p0 sent a damaged line (a message is not JSON: JSONDecodeError) and was killed")
    worker.end(ask=False)

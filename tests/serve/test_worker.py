"""A worker process as its frontend holds it: one that does not run holds nobody up, and is noticed. The time is the test's own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from queue import SimpleQueue

import pytest

from abkt.serve.control import WorkerConfig
from abkt.serve.frontend.process import PING_S, SILENCE_S, Events, Worker, WorkerDied


def test_a_frozen_worker_holds_up_nobody_and_is_killed_when_it_has_been_silent(tmp_path: Path) -> None:
    events: Events = SimpleQueue()
    worker = Worker(WorkerConfig("p0", "prefill", "nowhere", 1, 16, 1), tmp_path, events)
    os.kill(worker.process.pid, signal.SIGSTOP)
    started_s = time.monotonic()
    for _ in range(40):
        worker.tell("submit", tokens=list(range(20_000)))  # far more than a pipe holds
    for i in range(20):
        now_s = started_s + i * PING_S
        worker.watch(now_s)
        if now_s < started_s + SILENCE_S:
            assert not worker.silent
    assert worker.silent
    assert events.get(timeout=30) == ("p0", None)
    assert str(worker.death()).startswith(f"worker p0 did not answer for {SILENCE_S:g} s and was killed")
    with pytest.raises(WorkerDied):
        worker.tell("ping")
    worker.end(ask=False)


def test_a_frontend_that_was_held_up_itself_blames_nobody(tmp_path: Path) -> None:
    worker = Worker(WorkerConfig("p0", "prefill", "nowhere", 1, 16, 1), tmp_path, SimpleQueue())
    os.kill(worker.process.pid, signal.SIGSTOP)
    worker.watch(time.monotonic() + 60.0)  # a minute later it asks for the first time
    assert not worker.silent
    worker.end(ask=False)
    assert worker.process.poll() is not None

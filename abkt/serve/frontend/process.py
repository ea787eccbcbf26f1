"""One worker process as its frontend holds it: started, listened to, noticed when it dies or falls silent, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from abkt.serve.control import Message, WorkerConfig

LOG_LINES = 5
PING_S = 0.5
SILENCE_S = 2.5
SILENT_PINGS = 3  # unanswered, at least: so a frontend that was held up itself blames nobody

Events = SimpleQueue[tuple[str, Message | None]]


class ClusterError(RuntimeError):
    """A cluster that broke while it was starting or running, in one line."""


class WorkerDied(ClusterError):
    """Says which worker, how it ended and its last log lines, in one line."""


class Worker:
    """What it says comes to `events` as (name, message), its end as (name, None); answers to pings do not.

    where: what runs a command in its network namespace, if it has one.
    """

    def __init__(self, config: WorkerConfig, log_dir: Path, events: Events, where: Sequence[str] = ()) -> None:
        self.name = config.name
        self.log = log_dir / f"{config.name}.log"
        self.silent = False
        self._heard_s = self._pinged_s = time.monotonic()
        self._unanswered = 0
        environment = {**os.environ, "OMP_NUM_THREADS": str(config.threads), "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*where, sys.executable, "-m", "abkt.serve.worker.main", json.dumps(asdict(config))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is the frontend's to handle
            )
        self._to_say: SimpleQueue[bytes | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._listen, args=(events,), name=f"listen-{self.name}", daemon=True),
            threading.Thread(target=self._speak, name=f"tell-{self.name}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def tell(self, op: str, /, **fields: object) -> None:
        """Returns at once, whether or not the worker reads. Raises WorkerDied where it has ended."""
        if self.process.poll() is not None:
            raise self.death()
        self._to_say.put(json.dumps({"op": op, **fields}).encode() + b"\n")

    def watch(self, now_s: float) -> None:
        """Ping it now and then; kill it when it has been silent for SILENCE_S, which ends it as any other death does."""
        if self.silent:
            return
        if self._unanswered >= SILENT_PINGS and now_s - self._heard_s >= SILENCE_S:
            self.silent = True
            self.process.kill()
        if self.silent or now_s - self._pinged_s < PING_S:
            return
        self._pinged_s = now_s
        self._unanswered += 1
        with suppress(WorkerDied):  # its end is told anyway
            self.tell("ping")

    def death(self) -> WorkerDied:
        try:
            code: object = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = "none yet"
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        how = f"did not answer for {SILENCE_S:g} s and was killed" if self.silent else f"ended (exit code {code})"
        return WorkerDied(f"worker {self.name} {how}; its log ends: {' | '.join(lines[-LOG_LINES:]) or 'empty'}")

    def end(self, ask: bool = True, timeout_s: float = 3.0) -> None:
        """Ask (unless there is no time for that), then terminate, then kill. Returns when the process is gone."""
        self._to_say.put(None)
        asking: list[Callable[[], None]] = [lambda: None] if ask else []
        for stop in (*asking, self.process.terminate, self.process.kill):
            stop()
            try:
                self.process.wait(timeout=timeout_s)
                break
            except subprocess.TimeoutExpired:
                continue
        for thread in self._threads:
            thread.join(timeout=timeout_s)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _speak(self) -> None:
        """A worker that does not read would hold up whoever writes to it, when the pipe is full."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as pipe:
            while (line := self._to_say.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _listen(self, events: Events) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            self._heard_s, self._unanswered = time.monotonic(), 0
            if message["event"] != "pong":
                events.put((self.name, message))
        events.put((self.name, None))

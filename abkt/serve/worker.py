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
from typing import IO

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
                [*where, sys.executable, "-m", "abkt.serve.node", json.dumps(asdict(config))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is the frontend's to handle
            )
        assert self.process.stdin is not None
        self._in: IO[bytes] = self.process.stdin
        self._listener = threading.Thread(target=self._listen, args=(events,), name=f"listen-{self.name}", daemon=True)
        self._listener.start()

    def tell(self, op: str, /, **fields: object) -> None:
        """Raises WorkerDied where nobody listens any more."""
        try:
            self._in.write(json.dumps({"op": op, **fields}).encode() + b"\n")
            self._in.flush()
        except (BrokenPipeError, ValueError):
            raise self.death() from None

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
        with suppress(BrokenPipeError):
            self._in.close()
        asking: list[Callable[[], None]] = [lambda: None] if ask else []
        for stop in (*asking, self.process.terminate, self.process.kill):
            stop()
            try:
                self.process.wait(timeout=timeout_s)
                break
            except subprocess.TimeoutExpired:
                continue
        self._listener.join(timeout=timeout_s)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _listen(self, events: Events) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            self._heard_s, self._unanswered = time.monotonic(), 0
            if message["event"] != "pong":
                events.put((self.name, message))
        events.put((self.name, None))

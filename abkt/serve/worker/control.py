"""The worker's connection to its frontend: commands arrive on stdin, reports go out on stdout.

The worker's own prints, and those of its libraries, go to stderr, which is its log file. When stdin ends, the frontend is gone. The
worker then ends too, so no orphan process remains.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import Protocol, TextIO

from abkt.serve.commands import Ping, WorkerCommand, WorkerConfig, decode_command
from abkt.serve.messages import encode
from abkt.serve.reports import Pong, WorkerReport
from abkt.serve.worker.events import FrontendGone, WorkerEvent

log = logging.getLogger(__name__)

Inbox = SimpleQueue[WorkerCommand | WorkerEvent]


class Control(Protocol):
    """The worker's connection to its frontend. inbox: commands, and events of the worker's own threads, for its main loop."""

    inbox: Inbox

    def say(self, report: WorkerReport) -> None:
        """Send a report. May be called from any thread."""
        ...


class Log:
    """The worker's log file as a text stream. What cannot be written, because the disk is full, is lost: a library that prints a progress
    bar must not end the worker."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


class PipeControl:
    """The Control of a worker process. A separate thread answers pings while the main loop computes, so silence means a stopped process."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        sys.stderr = Log(sys.stderr)  # type: ignore[assignment]
        sys.stdout = sys.stderr
        self._lock = threading.Lock()
        self.inbox: Inbox = SimpleQueue()
        threading.Thread(target=self._read, name="control", daemon=True).start()

    def say(self, report: WorkerReport) -> None:
        with self._lock:
            self._out.write(encode(report) + "\n")

    def _read(self) -> None:
        for line in sys.stdin:
            try:
                command = decode_command(line)
            except ValueError as error:
                log.error("the frontend sent a damaged line: %s", error)
                break
            if isinstance(command, Ping):
                self.say(Pong())
            else:
                self.inbox.put(command)
        self.inbox.put(FrontendGone())
        # The main loop sees this between two computations. A worker whose computation does not end must not outlive its frontend.
        threading.Timer(3.0, os._exit, args=(1,)).start()


def pin(config: WorkerConfig) -> None:
    """Pin this process to its core and set torch's threads. Call it before torch computes anything."""
    if config.core is not None:
        os.sched_setaffinity(0, {config.core})
    import torch

    torch.set_num_threads(config.threads)

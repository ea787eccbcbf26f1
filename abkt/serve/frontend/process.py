"""One worker process, as the frontend controls it: start, reports, pings, and end."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from abkt.module_process import module_command, module_environment
from abkt.serve.commands import Ping, WorkerCommand, WorkerConfig
from abkt.serve.errors import WorkerDied
from abkt.serve.messages import encode
from abkt.serve.reports import Pong, WorkerReport, decode_report

LOG_LINES = 5
PING_S = 0.5
SILENCE_S = 2.5
START_SILENCE_S = 30.0  # of a worker that is starting: Python and torch are loading, and hold the thread that answers
SILENT_PINGS = 3  # unanswered pings before a worker is killed; a frontend that was itself suspended must not kill its workers

Events = SimpleQueue[tuple[str, WorkerReport | None]]


class WorkerProcess:
    """One worker process. It puts reports into `events` as (name, report), and its end as (name, None). Pongs are not put there.

    launcher: a command prefix that runs the process in the worker's network namespace; empty: none.
    """

    def __init__(self, config: WorkerConfig, log_dir: Path, events: Events, launcher: Sequence[str] = ()) -> None:
        self.name = config.name
        self.log = log_dir / f"{config.name}.log"
        self._killed_because = ""
        self._heard_s = self._pinged_s = time.monotonic()
        self._unanswered = 0
        environment = module_environment(OMP_NUM_THREADS=str(config.threads), TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                [*launcher, *module_command("abkt.serve.worker.main", encode(config))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # only the frontend handles Ctrl-C
            )
        self._to_send: SimpleQueue[bytes | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._listen, args=(events,), name=f"listen-{self.name}", daemon=True),
            threading.Thread(target=self._send, name=f"tell-{self.name}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    @property
    def killed(self) -> bool:
        """Whether the frontend has killed it."""
        return bool(self._killed_because)

    def tell(self, command: WorkerCommand) -> None:
        """Send a command. Returns at once, whether or not the worker reads it. Raises WorkerDied if the worker has ended."""
        if self.ended:
            raise self.death()
        self._to_send.put(encode(command).encode() + b"\n")

    def watch(self, now_s: float, silence_s: float = SILENCE_S) -> None:
        """Ping the worker regularly. Kill it when it has been silent for silence_s; its end is then reported like any other."""
        if self.killed:
            return
        if self._unanswered >= SILENT_PINGS and now_s - self._heard_s >= silence_s:
            self.kill(f"did not answer for {silence_s:g} s")
            return
        if now_s - self._pinged_s < PING_S:
            return
        self._pinged_s = now_s
        self._unanswered += 1
        with suppress(WorkerDied):  # its end is reported as an event
            self.tell(Ping())

    def death(self) -> WorkerDied:
        """The error that says how the process ended."""
        try:
            code: object = self._popen.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = "none yet"
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        how = f"{self._killed_because} and was killed" if self.killed else f"ended (exit code {code})"
        return WorkerDied(f"worker {self.name} {how}; its log ends: {' | '.join(lines[-LOG_LINES:]) or 'empty'}")

    def end(self, ask: bool = True, timeout_s: float = 3.0) -> None:
        """Close its stdin and wait (only if `ask`), then terminate it, then kill it. Returns when the process is gone."""
        self._to_send.put(None)
        asking: list[Callable[[], None]] = [lambda: None] if ask else []
        for stop in (*asking, self._popen.terminate, self._popen.kill):
            stop()
            try:
                self._popen.wait(timeout=timeout_s)
                break
            except subprocess.TimeoutExpired:
                continue
        for thread in self._threads:
            thread.join(timeout=timeout_s)
        if self._popen.stdout is not None:
            self._popen.stdout.close()

    def kill(self, because: str) -> None:
        """Kill it; its end is reported like any other. because: what it did, for `death`."""
        self._killed_because = because
        self._popen.kill()

    def _send(self) -> None:
        """Write commands, in a separate thread: writing to a worker that does not read blocks once the pipe is full."""
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError), self._popen.stdin as pipe:
            while (line := self._to_send.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _listen(self, events: Events) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            try:
                report = decode_report(line)
            except (ValueError, TypeError) as error:  # TypeError: a class that its own fields cannot make
                self.kill(f"sent a damaged line ({error})")
                break
            self._heard_s, self._unanswered = time.monotonic(), 0
            if not isinstance(report, Pong):
                events.put((self.name, report))
        events.put((self.name, None))

"""A cluster that takes requests as they come: a thread that steps the frontend, and what other threads may ask of it."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from abkt.records import RequestRecord, TransferRecord
from abkt.serve.frontend.frontend import STEP_S, Frontend
from abkt.serve.frontend.process import ClusterError
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.frontend.ticket import OpenRequest

RECORDS_KEPT = 100_000

log = logging.getLogger(__name__)


class Busy(RuntimeError):
    """More requests wait than may; come again after retry_after_s."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(f"{waiting} requests are waiting for memory already; come again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Status:
    """error: why it takes nothing any more. kv_used: share of the memory promised, by decode worker."""

    prefill: tuple[str, ...]
    decode: tuple[str, ...]
    open: int
    waiting: int
    kv_used: dict[str, float]
    error: str = ""


class Service:
    """A context manager. frontend: made with the function given, on its own thread's behalf; nobody else may touch it.

    on_done(ticket): told of each that is done, in the service's thread, before its own listener is. most_waiting: requests that have no
    place yet; one more is turned away. The last records are kept, RECORDS_KEPT of each kind.
    """

    def __init__(
        self,
        make: Callable[[Callable[[OpenRequest], None]], Frontend],
        most_waiting: int = 256,
        on_done: Callable[[OpenRequest], None] = lambda ticket: None,
    ) -> None:
        self.requests: deque[RequestRecord] = deque(maxlen=RECORDS_KEPT)
        self.transfers: deque[TransferRecord] = deque(maxlen=RECORDS_KEPT)
        self._frontend = make(self._finished)
        self._most_waiting = most_waiting
        self._on_done = on_done
        self._numbers = itertools.count()
        self._listeners: dict[int, Callable[[OpenRequest], None]] = {}
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closing = threading.Event()
        self._lock = threading.Lock()  # of the status
        self._status = self._look()
        self._thread = threading.Thread(target=self._run, name="frontend", daemon=True)

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    @property
    def status(self) -> Status:
        with self._lock:
            return self._status

    def submit(self, prompt: Prompt, on_tokens: Callable[[list[int]], None], on_done: Callable[[OpenRequest], None]) -> int:
        """Its number. The prompt's own number and time are set here. Both listeners are called from the service's thread.

        Raises Busy, or ClusterError where the cluster has broken.
        """
        status = self.status
        if status.error:
            raise ClusterError(status.error)
        if status.waiting >= self._most_waiting:
            raise Busy(status.waiting, retry_after_s=1.0 + status.waiting / 10)
        number = next(self._numbers)

        def begin() -> None:
            if error := self.status.error:
                on_done(_failed(number, error))
                return
            self._listeners[number] = on_done
            self._frontend.submit(OpenRequest(replace(prompt, request_id=number, arrival_s=self._frontend.now_s()), on_tokens))

        self._call(begin)
        return number

    def cancel(self, number: int) -> None:
        self._call(lambda: None if self.status.error else self._frontend.cancel(number))

    def _call(self, work: Callable[[], None]) -> None:
        self._calls.put(work)
        self._frontend.roster.events.put(("", None))  # it may be waiting for one

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                with suppress(Empty):
                    while True:
                        self._calls.get_nowait()()
                if self.status.error:
                    self._closing.wait(STEP_S)
                    continue
                self._frontend.step(1.0)
                self._note(self._look())
            except Exception as error:
                log.exception("the frontend failed; nothing is taken any more")
                self._fail(str(error) or type(error).__name__)

    def _fail(self, reason: str) -> None:
        """Whoever waits is told."""
        self._note(replace(self.status, error=reason))
        for number, listener in list(self._listeners.items()):
            listener(_failed(number, reason))
        self._listeners.clear()

    def _finished(self, ticket: OpenRequest) -> None:
        assert ticket.record is not None
        self.requests.append(ticket.record)
        if ticket.transfer:
            self.transfers.append(ticket.transfer)
        self._on_done(ticket)
        if listener := self._listeners.pop(ticket.prompt.request_id, None):
            listener(ticket)

    def _look(self) -> Status:
        front = self._frontend
        kv_used = {name: book.kv_used for name, book in front.book.decode.items()}
        serving: Any = {role: tuple(front.roster.serving(role)) for role in ("prefill", "decode")}
        return Status(**serving, open=front.open, waiting=front.waiting, kv_used=kv_used)

    def _note(self, status: Status) -> None:
        with self._lock:
            self._status = status


def _failed(number: int, reason: str) -> OpenRequest:
    return OpenRequest(Prompt(number, 0.0, (), 0), record=RequestRecord(number, 0, 0, 0.0, outcome="failed", reason=reason))

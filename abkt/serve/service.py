"""A cluster that accepts requests at any time: one thread runs the frontend, and other threads call the service."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

from abkt.records import RequestRecord, TransferRecord
from abkt.serve.engine.generation import TokenLogprobs
from abkt.serve.errors import ClusterError
from abkt.serve.frontend.frontend import STEP_S, Frontend
from abkt.serve.frontend.open_request import OpenRequest
from abkt.serve.frontend.prompt import Prompt

RECORDS_KEPT = 100_000

log = logging.getLogger(__name__)


class Busy(RuntimeError):
    """Too many requests are waiting; retry after retry_after_s."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(f"{waiting} requests wait for KV memory already; retry in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """prefill, decode: workers that accept requests. open: requests that are not done; waiting: open requests that are not placed. kv_used:
    decode worker -> share of its memory that is reserved. error: why the service accepts no more requests; empty: it accepts them."""

    prefill: tuple[str, ...]
    decode: tuple[str, ...]
    open: int
    waiting: int
    kv_used: dict[str, float]
    error: str = ""


class Service:
    """A frontend in a thread of its own. A context manager; `submit`, `cancel`, `finish` and `status` may be called from any
    thread.

    Parameters
    ----------
    make : makes the frontend; its argument is the function that the frontend must call for each request that is done. Only this service
        may use the frontend.
    most_waiting : most requests that may wait for a worker; further ones are refused (Busy).
    on_done : called in the service's thread for each request that is done, before the request's own `on_done`.

    Attributes
    ----------
    requests, transfers : the most recent records, at most RECORDS_KEPT of each kind.
    """

    def __init__(
        self,
        make: Callable[[Callable[[OpenRequest], None]], Frontend],
        most_waiting: int = 256,
        on_done: Callable[[OpenRequest], None] = lambda request: None,
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
        self._lock = threading.Lock()  # protects the status
        self._status = self._look()
        self._thread = threading.Thread(target=self._run, name="frontend", daemon=True)

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    @property
    def status(self) -> ServiceStatus:
        with self._lock:
            return self._status

    def submit(
        self,
        prompt: Prompt,
        on_tokens: Callable[[list[int], list[TokenLogprobs]], None],
        on_done: Callable[[OpenRequest], None],
    ) -> tuple[int, Future[None]]:
        """Submit a request. The limit is checked in the service's thread, so that it is exact however many threads submit at once.

        Parameters
        ----------
        prompt : the request; its request_id and arrival_s are set here.
        on_tokens : called with new tokens and the logprobs of each, if prompt.stream.
        on_done : called once, when the request is done and has its record. Both functions are called in the service's thread.

        Returns
        -------
        The request's number, for `cancel` and `finish`, and whether it was accepted: the future raises Busy if too many requests are
        waiting, and ClusterError if the cluster has failed. Only an accepted request is done later.
        """
        number, accepted = next(self._numbers), Future[None]()

        def begin() -> None:
            if error := self.status.error:
                accepted.set_exception(ClusterError(error))
            elif (waiting := self._frontend.waiting) >= self._most_waiting:  # the frontend serves in order, so this one would wait too
                accepted.set_exception(Busy(waiting, retry_after_s=1.0 + waiting / 10))
            else:
                accepted.set_result(None)
                self._listeners[number] = on_done
                self._frontend.submit(OpenRequest(replace(prompt, request_id=number, arrival_s=self._frontend.now_s()), on_tokens))

        self._call(begin)
        return number, accepted

    def cancel(self, number: int) -> None:
        """Cancel a request whose client no longer wants the answer."""
        self._call(lambda: None if self.status.error else self._frontend.cancel(number))

    def finish(self, number: int) -> None:
        """End a request's output with the tokens it has: its client has what it wants. It is then done, and completed."""
        self._call(lambda: None if self.status.error else self._frontend.finish(number))

    def _call(self, work: Callable[[], None]) -> None:
        """Run `work` in the service's thread."""
        self._calls.put(work)
        self._frontend.workers.wake()

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
                log.exception("the frontend has failed; no request is taken any more")
                self._fail(str(error) or type(error).__name__)

    def _fail(self, reason: str) -> None:
        """Fail every open request, and refuse every later one."""
        self._note(replace(self.status, error=reason))
        for number, listener in list(self._listeners.items()):
            listener(_failed(number, reason))
        self._listeners.clear()

    def _finished(self, request: OpenRequest) -> None:
        assert request.record is not None
        self.requests.append(request.record)
        if request.transfer:
            self.transfers.append(request.transfer)
        self._on_done(request)
        if listener := self._listeners.pop(request.prompt.request_id, None):
            listener(request)

    def _look(self) -> ServiceStatus:
        front = self._frontend
        return ServiceStatus(
            prefill=tuple(front.workers.serving("prefill")),
            decode=tuple(front.workers.serving("decode")),
            open=front.open,
            waiting=front.waiting,
            kv_used={name: decode.kv_used for name, decode in front.reservations.decode.items()},
        )

    def _note(self, status: ServiceStatus) -> None:
        with self._lock:
            self._status = status


def _failed(number: int, reason: str) -> OpenRequest:
    return OpenRequest(Prompt(number, 0.0, (), 0), record=RequestRecord(number, 0, 0, 0.0, outcome="failed", reason=reason))

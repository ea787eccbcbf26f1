"""The attempts that workers may still report on: attempts in progress, and abandoned attempts whose sender has not reported yet."""

from __future__ import annotations

from collections.abc import Callable

from abkt.serve.frontend.attempt import Attempt
from abkt.serve.frontend.open_request import OpenRequest
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.reports import AttemptFailed, AttemptReport, Prefilled, TransferSent
from abkt.spec import ModelSpec


class Attempts:
    """All attempts that may still be reported on. numbers: returns a new attempt id at each call."""

    def __init__(self, numbers: Callable[[], int], model: ModelSpec) -> None:
        self._numbers, self._model = numbers, model
        self._requests: dict[int, OpenRequest] = {}  # by attempt id
        self._abandoned: dict[int, tuple[OpenRequest, Attempt]] = {}  # by attempt id, until the sender reports how much it had sent

    def start(self, request: OpenRequest, prompt: Prompt, source: str, destination: str) -> Attempt:
        attempt = request.attempt = Attempt(self._numbers(), prompt, source, destination)
        self._requests[attempt.attempt_id] = request
        return attempt

    def request(self, attempt_id: int) -> OpenRequest | None:
        """The request whose current attempt has this id."""
        return self._requests.get(attempt_id)

    def involving(self, name: str) -> list[OpenRequest]:
        """Requests whose current attempt uses this worker, in the order of their placement."""
        return [request for request in self._requests.values() if request.attempt and name in request.attempt.workers]

    def end(self, request: OpenRequest) -> None:
        """End the request's current attempt."""
        if request.attempt:
            self._requests.pop(request.attempt.attempt_id, None)
            request.attempt = None

    def abandon(self, request: OpenRequest, ended: AttemptFailed | None, sender_lives: bool) -> None:
        """Abandon the current attempt. ended: the failure that its sender has reported, if any."""
        if attempt := request.attempt:
            if known := ended or attempt.sent:
                request.lost(attempt, known, self._model)
            elif sender_lives:
                self._abandoned[attempt.attempt_id] = request, attempt
        self.end(request)

    def heard(self, name: str, report: AttemptReport) -> None:
        """Handle a worker's report. If the worker was the sender of an abandoned attempt, the report says how much it had sent."""
        if not ends_sending(report) or (found := self._abandoned.get(report.attempt_id)) is None:
            return
        request, attempt = found
        if name == attempt.source:
            del self._abandoned[report.attempt_id]
            if isinstance(report, TransferSent | AttemptFailed):
                request.lost(attempt, report, self._model)

    def withdrawn(self, attempt_id: int) -> OpenRequest | None:
        """End an attempt whose prompt was not started; returns its request."""
        self._abandoned.pop(attempt_id, None)
        return self._requests.pop(attempt_id, None)

    def sender_lost(self, name: str) -> None:
        """Handle the end of a worker that will send no more reports."""
        self._abandoned = {number: found for number, found in self._abandoned.items() if found[1].source != name}

    def awaits(self, name: str) -> bool:
        """Whether this worker has yet to report how much it had sent of an abandoned attempt."""
        return any(attempt.source == name for _, attempt in self._abandoned.values())


def ends_sending(report: AttemptReport) -> bool:
    """Whether this report of a prefill worker is its last one on the attempt."""
    return isinstance(report, TransferSent | AttemptFailed) or (isinstance(report, Prefilled) and report.transfer is None)

"""The attempts that workers may still report on: those under way, and those that were abandoned while their sender was at work."""

from __future__ import annotations

from collections.abc import Callable

from abkt.serve.frontend.attempt import Attempt
from abkt.serve.frontend.open_request import OpenRequest
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.reports import AttemptFailed, AttemptReport, Prefilled, TransferSent
from abkt.spec import ModelSpec


class Attempts:
    """numbers: gives each attempt its id."""

    def __init__(self, numbers: Callable[[], int], model: ModelSpec) -> None:
        self._numbers, self._model = numbers, model
        self._requests: dict[int, OpenRequest] = {}  # by attempt id
        self._abandoned: dict[int, tuple[OpenRequest, Attempt]] = {}  # by attempt id, until the sender reports what it had sent

    def start(self, request: OpenRequest, prompt: Prompt, source: str, destination: str) -> Attempt:
        attempt = request.attempt = Attempt(self._numbers(), prompt, source, destination)
        self._requests[attempt.attempt_id] = request
        return attempt

    def request(self, attempt_id: int) -> OpenRequest | None:
        """The request whose present attempt this is."""
        return self._requests.get(attempt_id)

    def involving(self, name: str) -> list[OpenRequest]:
        """Requests whose present attempt is on this worker, in the order of their placement."""
        return [request for request in self._requests.values() if request.attempt and name in request.attempt.workers]

    def end(self, request: OpenRequest) -> None:
        """The request's present attempt is over."""
        if request.attempt:
            self._requests.pop(request.attempt.attempt_id, None)
            request.attempt = None

    def abandon(self, request: OpenRequest, ended: AttemptFailed | None, sender_lives: bool) -> None:
        """End the present attempt before its time. ended: its failure, if its sender has reported that."""
        if attempt := request.attempt:
            if known := ended or attempt.sent:
                request.lost(attempt, known, self._model)
            elif sender_lives:
                self._abandoned[attempt.attempt_id] = request, attempt
        self.end(request)

    def heard(self, name: str, report: AttemptReport) -> None:
        """A worker has reported; if it was the sender of an abandoned attempt, that is what it had sent."""
        if not ends_sending(report) or (found := self._abandoned.get(report.attempt_id)) is None:
            return
        request, attempt = found
        if name == attempt.source:
            del self._abandoned[report.attempt_id]
            if isinstance(report, TransferSent | AttemptFailed):
                request.lost(attempt, report, self._model)

    def withdrawn(self, attempt_id: int) -> OpenRequest | None:
        """A prompt was not begun: the request whose present attempt that was."""
        self._abandoned.pop(attempt_id, None)
        return self._requests.pop(attempt_id, None)

    def sender_lost(self, name: str) -> None:
        """This worker will report nothing any more."""
        self._abandoned = {number: found for number, found in self._abandoned.items() if found[1].source != name}

    def awaits(self, name: str) -> bool:
        """Whether this worker still has to report what it had sent of an abandoned attempt."""
        return any(attempt.source == name for _, attempt in self._abandoned.values())


def ends_sending(report: AttemptReport) -> bool:
    """Whether a prefill worker that reports this has nothing left to do for the attempt."""
    return isinstance(report, TransferSent | AttemptFailed) or (isinstance(report, Prefilled) and report.transfer is None)

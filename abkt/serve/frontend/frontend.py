"""The frontend: places requests on workers, tracks them, and places them again when a worker or a transfer fails.

Each placement is one attempt. When an attempt fails, tokens that were already streamed are kept, and the next attempt continues after
them. Without streaming, the next attempt starts from the beginning; it uses the request's own seed, so it gives the same tokens.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from abkt.policy.routing.base import RoutingPolicy
from abkt.policy.view import Refined
from abkt.serve.commands import (
    AddPeer,
    CancelAttempt,
    FinishAttempt,
    Prepare,
    RefinementEnded,
    RemovePeer,
    SubmitPrompt,
    WithdrawPrompts,
)
from abkt.serve.frontend.attempt import Attempt
from abkt.serve.frontend.attempts import Attempts, ends_sending
from abkt.serve.frontend.open_request import OpenRequest
from abkt.serve.frontend.placement import Placement
from abkt.serve.frontend.reservations import Reservations
from abkt.serve.frontend.roles import WorkerRoles
from abkt.serve.frontend.terms import RunTerms
from abkt.serve.frontend.workers import Workers
from abkt.serve.reports import (
    AttemptCancelled,
    AttemptFailed,
    AttemptFinished,
    AttemptReport,
    CodedCurves,
    Prefilled,
    PromptsWithdrawn,
    Ready,
    StreamedTokens,
    TransferSent,
    WorkerReport,
)

TRIES = 3
STARTS = 3  # new workers of a role that may end before they are ready, in a row; then no further one is started
ENDED = "the client wanted no further token, so no further attempt was made"
STEP_S = 0.1  # the longest time between two checks of the workers' health


class Frontend:
    """Serves requests with the workers of a cluster. Only one thread may call it. It runs no model, so it may share a core with a worker.

    Parameters
    ----------
    workers, reservations : the cluster's workers and their reservations; only this frontend may change them while it is in use.
    terms : the settings that hold for all requests.
    routing : the policy that chooses a pair of workers for each request.
    origin_s : the time on CLOCK_MONOTONIC that is 0 in all records.
    numbers : returns a new attempt id at each call; ids are unique on these workers.
    done : called once for each submitted request, with its record, whatever the outcome.
    coded : called with the rate curves of each prompt that was encoded at full depth.
    roles : changes workers' roles while requests are served; None: roles do not change.

    Raises
    ------
    WorkerDied : from `step`, if a role has no worker left and none is going to take it.
    """

    def __init__(
        self,
        workers: Workers,
        reservations: Reservations,
        terms: RunTerms,
        routing: RoutingPolicy,
        origin_s: float,
        numbers: Callable[[], int],
        done: Callable[[OpenRequest], None],
        coded: Callable[[CodedCurves], None] = lambda curves: None,
        roles: WorkerRoles | None = None,
    ) -> None:
        self.workers, self.reservations, self.terms, self.origin_s = workers, reservations, terms, origin_s
        self.heard_s = time.monotonic()  # when a worker last reported anything
        self.codec = ""  # name of the implementation that encoded last
        self.role_changes: list[tuple[float, str, str]] = []  # (time, worker, role in which it became ready; "" when it began to drain)
        self._model = reservations.expect.layout.model
        self._placement = Placement(routing, workers, reservations)
        self._roles = roles
        self._done, self._coded = done, coded
        self._open: dict[int, OpenRequest] = {}  # by request id
        self._attempts = Attempts(numbers, self._model)
        self._waiting: deque[OpenRequest] = deque()
        self._starts_failed: dict[str, int] = {}  # by role, since a worker of this role was ready
        for name, worker in workers.states.items():
            if worker.phase == "ready":
                self._begin(name)

    @property
    def open(self) -> int:
        """Requests that are not done."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Open requests that are not placed yet."""
        return len(self._waiting)

    def now_s(self) -> float:
        return time.monotonic() - self.origin_s

    def submit(self, request: OpenRequest) -> None:
        prompt = request.prompt
        if prompt.request_id in self._open:
            raise ValueError(f"request {prompt.request_id} is open already")
        self._open[prompt.request_id] = request
        if prompt.isl + prompt.osl > self.terms.most_tokens:
            reason = f"{prompt.isl} prompt and {prompt.osl} output tokens are more than a request can have: {self.terms.limits}"
            self._close(request, "rejected", reason)
            return
        self._waiting.append(request)
        self._place()

    def cancel(self, request_id: int) -> None:
        """Cancel a request whose client no longer wants the answer."""
        if request := self._open.get(request_id):
            self._abandon(request)
            self._close(request, "failed", "cancelled")

    def finish(self, request_id: int) -> None:
        """End a request's output with the tokens it has, because its client wants no further one."""
        if (request := self._open.get(request_id)) is None:
            return
        request.ended = True
        if attempt := request.attempt:
            self._tell_ended(attempt)
        else:
            self._close(request, "failed", "; ".join([*request.failures, ENDED]))

    def _tell_ended(self, attempt: Attempt) -> None:
        if attempt.destination in self.workers.states:
            self.workers.tell(attempt.destination, FinishAttempt(attempt.attempt_id))

    def change(self, name: str, role: str) -> None:
        """Change a worker's role once it has drained. Role GONE ends it; a new name starts a worker. Raises ValueError if it cannot."""
        if name not in self.workers.states:
            self.workers.start(name, role)
            return
        self.workers.drain(name, role)
        worker = self.workers.states[name]
        if worker.phase == "draining":
            self.role_changes.append((self.now_s(), name, ""))
            if worker.role == "prefill":
                self.workers.tell(name, WithdrawPrompts())
        self._change_drained()

    def step(self, timeout_s: float) -> None:
        """Wait up to timeout_s for one event, and handle it."""
        name, report = self.workers.next(min(timeout_s, STEP_S))
        if name in self.workers.states:
            if report is None:
                self._lost(name)
            else:
                self.heard_s = time.monotonic()
                self._take(name, report)
        self.workers.watch()
        if self._roles:
            for name, role in self._roles.due(self.now_s(), self.workers, self.reservations):
                self.change(name, role)

    def _take(self, name: str, report: WorkerReport) -> None:
        """Handle a report. Answers to Workers.ask are ignored here."""
        match report:
            case Ready():
                self.workers.ready(name, report)
                self._starts_failed.pop(report.role, None)
                self.role_changes.append((self.now_s(), name, report.role))
                self._begin(name)
                if report.role == "decode":
                    self.workers.tell_all("prefill", AddPeer(name, report.address))
                self._place()
            case CodedCurves():
                self._coded(report)
            case StreamedTokens():
                for attempt_id, token, logprobs in report.tokens:
                    if request := self._attempts.request(attempt_id):
                        request.decoded(token, logprobs)
            case AttemptCancelled():
                self.reservations.freed(report.attempt_id, name)
                self._place()
            case PromptsWithdrawn():
                self._place_again(name, report.attempt_ids)
            case Prefilled() | TransferSent() | AttemptFailed() | AttemptFinished():
                self._follow(name, report)

    def _follow(self, name: str, report: AttemptReport) -> None:
        """Handle a report on an attempt, which may be an abandoned one."""
        attempt_id = report.attempt_id
        self._attempts.heard(name, report)
        if isinstance(report, AttemptFinished):
            self.reservations.freed(attempt_id, name, report.decode_busy_s / max(1, len(report.tokens) - 1))
        request = self._attempts.request(attempt_id)
        if request and (attempt := request.attempt):
            attempt.add(report)
            self.reservations.follow(attempt, report, self.now_s())
            if isinstance(report, Prefilled):
                self.codec = report.transfer.codec if report.transfer else self.codec
                tokens, logprobs = zip((report.token, report.logprobs), *attempt.early, strict=True)
                request.stream(list(tokens), list(logprobs))
            if attempt.complete:
                self._finish(request, attempt)
            elif isinstance(report, AttemptFailed):
                self._retry(request, f"{name}: {report.reason}", report if name == attempt.source else None)
        elif ends_sending(report):
            self.reservations.forget(attempt_id, name)
        self._change_drained()
        self._place()

    def _place_again(self, name: str, attempt_ids: Sequence[int]) -> None:
        """Place prompts again that a draining worker had not started. They go before requests that came later."""
        for attempt_id in reversed(attempt_ids):
            self.reservations.forget(attempt_id, name)
            if (request := self._attempts.withdrawn(attempt_id)) and request.attempt:
                self.reservations.freed(attempt_id, request.attempt.destination)
                request.attempt = None
                self._waiting.appendleft(request)
        self._change_drained()
        self._place()

    def _finish(self, request: OpenRequest, attempt: Attempt) -> None:
        record = request.complete(attempt, self._model, self.terms.compute)
        if attempt.sent and attempt.refinable and attempt.source in self.workers.states:
            self.workers.tell(attempt.source, RefinementEnded(attempt.attempt_id, record.distortion_token_weighted))
            start = attempt.sent.distortion
            refined = Refined(start, min(start, record.distortion_token_weighted))
            self.reservations.refined(attempt.source, attempt.destination, refined, self.now_s())
        if attempt.single_token:
            self.reservations.freed(attempt.attempt_id, attempt.destination)
            self.reservations.forget(attempt.attempt_id, attempt.source)
        self._shut(request)

    def _close(self, request: OpenRequest, outcome: str, reason: str) -> None:
        """End a request without an answer."""
        request.give_up(outcome, reason, self.terms.compute)
        if request in self._waiting:
            self._waiting.remove(request)
        self._shut(request)

    def _shut(self, request: OpenRequest) -> None:
        self._attempts.end(request)
        del self._open[request.prompt.request_id]
        self._done(request)

    def _retry(self, request: OpenRequest, failure: str, ended: AttemptFailed | None = None) -> None:
        """Abandon the attempt; queue the request again unless TRIES attempts have failed. ended: the sender's report, if any."""
        self._abandon(request, ended)
        request.failures.append(failure)
        if request.ended:
            self._close(request, "failed", "; ".join([*request.failures, ENDED]))
        elif len(request.failures) >= TRIES:
            self._close(request, "failed", "; ".join(dict.fromkeys(request.failures)))
        else:
            self._waiting.appendleft(request)

    def _abandon(self, request: OpenRequest, ended: AttemptFailed | None = None) -> None:
        """Tell both workers to drop the attempt. Its memory stays reserved until they have answered."""
        if attempt := request.attempt:
            self._attempts.abandon(request, ended, sender_lives=attempt.source in self.workers.states)
            for name in attempt.workers:
                if name in self.workers.states and self.workers.states[name].phase != "starting":
                    self.workers.tell(name, CancelAttempt(attempt.attempt_id))

    def _lost(self, name: str) -> None:
        """Handle the end of a worker: retry its requests on other workers."""
        role, starting = self.workers.states[name].role, self.workers.states[name].phase == "starting"
        death = self.workers.lost(name)
        self.reservations.leave(name)
        if role == "decode":
            self.workers.tell_all("prefill", RemovePeer(name))
        self._attempts.sender_lost(name)
        for request in reversed(self._attempts.involving(name)):
            if (attempt := request.attempt) and not (name == attempt.source and attempt.sent):  # else decoding goes on
                self._retry(request, str(death).partition(";")[0])
        self._starts_failed[role] = self._starts_failed.get(role, 0) + 1 if starting else 0
        if self.terms.replace_dead and self._starts_failed[role] < STARTS:
            self.workers.start(self.workers.new_name(role), role)
        if not self.workers.will_serve(role):
            raise death
        self._place()

    def _begin(self, name: str) -> None:
        """Start the run on a worker that is ready in its role."""
        role = self.workers.states[name].role
        self.reservations.leave(name)
        self.reservations.enter(name, role)
        if self.terms.longest:
            self.workers.tell(name, Prepare(self.terms.longest))
        self.workers.tell(name, self.terms.start(role, self.origin_s, self.workers.addresses()))

    def _change_drained(self) -> None:
        """Change the role of draining workers that hold no request's data any more."""
        for name in [name for name, worker in self.workers.states.items() if worker.phase == "draining"]:
            if self.reservations.holds_nothing(name) and not self._attempts.awaits(name):
                if self.workers.states[name].role == "decode":
                    self.workers.tell_all("prefill", RemovePeer(name))
                self.reservations.leave(name)
                self.workers.drained(name)

    def _place(self) -> None:
        """Place waiting requests in order, while there are workers and decode memory for them."""
        while self._waiting:
            request = self._waiting[0]
            prompt = request.remaining()
            pair = self._placement.choose(prompt, self.now_s())
            if pair is None:
                return
            self._waiting.popleft()
            attempt = self._attempts.start(request, prompt, *pair)
            self.reservations.promise(attempt.attempt_id, *pair, prompt.isl, prompt.osl, self.now_s())
            deadline_s = self.reservations.expect.deadline_s(prompt.arrival_s, prompt.isl)
            command = SubmitPrompt(attempt.attempt_id, prompt.tokens, attempt.destination, deadline_s, prompt.generation)
            self.workers.tell(attempt.source, command)

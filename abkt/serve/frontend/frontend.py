"""The frontend: places requests on workers, follows them, and places them again when a worker or a way between two of them fails.

One thread calls it; it computes nothing, so it may share a core. A try that fails leaves its tokens, if they were streamed, and the next
one goes on after them; else the next one begins anew, which with the request's own seed gives the same tokens.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict

from abkt.policy.routing.base import RequestView, RoutingPolicy
from abkt.policy.view import Refined
from abkt.serve.control import Message
from abkt.serve.frontend.process import WorkerDied
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.frontend.records import RequestEvents
from abkt.serve.frontend.reservations import DecodeReservations, PrefillReservations, Reservations
from abkt.serve.frontend.roles import RoleController
from abkt.serve.frontend.ticket import OpenRequest, Terms
from abkt.serve.frontend.workers import Workers

TRIES = 3
STEP_S = 0.1  # at most between two looks at the workers' health


class Frontend:
    """done(ticket): called once for each that was submitted, whatever became of it. numbers: gives each try one that no other has.

    Raises WorkerDied where nobody is left for a role, and none will come.
    """

    def __init__(
        self,
        roster: Workers,
        book: Reservations,
        terms: Terms,
        routing: RoutingPolicy,
        origin_s: float,
        numbers: Callable[[], int],
        done: Callable[[OpenRequest], None],
        coded: Callable[[Message], None] = lambda message: None,
        roles: RoleController | None = None,
    ) -> None:
        self.roster, self.book, self.terms, self.routing, self.origin_s = roster, book, terms, routing, origin_s
        self.heard_s = time.monotonic()  # the last time that a worker said something
        self.codec = ""
        self.changed: list[tuple[float, str, str]] = []  # when which worker began to drain (role "") or was ready in another role
        self._roles = roles
        self._numbers, self._done, self._coded = numbers, done, coded
        self._open: dict[int, OpenRequest] = {}  # by request id
        self._tries: dict[int, OpenRequest] = {}  # by number of the try
        self._former: dict[
            int, tuple[OpenRequest, RequestEvents]
        ] = {}  # tries that were given up, until their sender tells what it had sent
        self._waiting: deque[OpenRequest] = deque()
        for name, member in roster.members.items():
            if member.state == "ready":
                self._begin(name)

    @property
    def open(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Of those, not placed yet."""
        return len(self._waiting)

    def now_s(self) -> float:
        return time.monotonic() - self.origin_s

    def submit(self, ticket: OpenRequest) -> None:
        prompt = ticket.prompt
        if prompt.request_id in self._open:
            raise ValueError(f"request {prompt.request_id} is open already")
        self._open[prompt.request_id] = ticket
        if prompt.isl + prompt.osl > self.terms.most_tokens:
            self._close(ticket, "rejected", f"{prompt.isl} + {prompt.osl} tokens can never fit: {self.terms.refusal}")
            return
        self._waiting.append(ticket)
        self._place()

    def cancel(self, request_id: int) -> None:
        """Nobody waits for it any more."""
        if ticket := self._open.get(request_id):
            self._abandon(ticket)
            self._close(ticket, "failed", "cancelled")

    def change(self, name: str, role: str) -> None:
        """A worker's next role, once it holds nothing; GONE ends it, and a name that is new starts one. Raises ValueError, one line."""
        if name not in self.roster.members:
            self.roster.start(name, role)
        else:
            self.roster.drain(name, role)
            if self.roster.members[name].state == "draining":
                self.changed.append((self.now_s(), name, ""))
                if self.roster.members[name].role == "prefill":
                    self._tell(name, "withdraw")
            self._let_drained()

    def step(self, timeout_s: float) -> None:
        """Take one event, if one comes within timeout_s, and what follows from it."""
        name, message = self.roster.next(min(timeout_s, STEP_S))
        if name in self.roster.members:
            if message is None:
                self._lost(name)
            else:
                self.heard_s = time.monotonic()
                self._take(name, message)
        self.roster.watch()
        if self._roles:
            for name, role in self._roles.due(self.now_s(), self.roster, self.book):
                self.change(name, role)

    def _take(self, name: str, message: Message) -> None:
        match message["event"]:
            case "ready":
                self.roster.ready(name, message)
                self.changed.append((self.now_s(), name, message["role"]))
                self._begin(name)
                if message["role"] == "decode":
                    self._tell_prefill("peer", name=name, address=message["address"])
                self._place()
            case "coded":
                self._coded(message)
            case "tokens":
                for number, token in message["tokens"]:
                    if ticket := self._tries.get(number):
                        ticket.stream([token])
            case "gone":
                self.book.freed(message["request_id"], name)
                self._place()
            case "withdrawn":
                self._elsewhere(name, message["request_ids"])
            case "prefilled" | "sent" | "failed" | "finished":
                self._follow(name, message["request_id"], message)

    def _follow(self, name: str, number: int, message: Message) -> None:
        """Something became of a try; of one that was given up only the book wants to know."""
        event, now_s = message["event"], self.now_s()
        ticket = self._tries.get(number)
        parts = ticket.parts if ticket else None
        if (former := self._former.get(number)) and name == former[1].source and (event in ("sent", "failed") or message.get("last")):
            del self._former[number]
            former[0].lost(former[1], message, self.book.expect.layout.model)
        if event == "finished":
            self.book.freed(number, name, message["decode_busy_s"] / max(1, len(message["tokens"]) - 1))
        if ticket and parts:
            parts.add(message)
            if event == "prefilled":
                self.codec = message.get("codec", self.codec)
                self.book.prefilled(number, name, parts.prompt.isl, message["prefill_end_s"] - message["prefill_start_s"])
                ticket.stream([message["token"]])
            elif event in ("sent", "failed"):
                self.book.sent(number, parts.source, parts.destination, message if event == "sent" else None, now_s)
            if event == "sent":
                seconds = message["acked_s"] - message["granted_s"]
                self.book.delivered(name, parts.destination, parts.prompt.isl, message["distortion"], seconds, now_s)
            if parts.complete:
                self._finish(ticket, parts)
            elif event == "failed":
                self._again(ticket, f"{name}: {message['reason']}", message if name == parts.source else None)
        elif event in ("sent", "failed") or message.get("last"):
            self.book.forget(number, name)
        self._let_drained()
        self._place()

    def _elsewhere(self, name: str, numbers: Sequence[int]) -> None:
        """Prompts that a worker which drains had not begun: they are placed again, before those that came later."""
        for number in reversed(numbers):
            self.book.forget(number, name)
            self._former.pop(number, None)
            if (ticket := self._tries.pop(number, None)) and ticket.parts:
                self.book.freed(number, ticket.parts.destination)
                ticket.parts = None
                self._waiting.appendleft(ticket)
        self._let_drained()
        self._place()

    def _finish(self, ticket: OpenRequest, parts: RequestEvents) -> None:
        record = ticket.complete(parts, self.book.expect.layout.model, self.terms.compute)
        if parts.refinable and parts.source in self.roster.members:
            self._tell(parts.source, "refined", request_id=ticket.number, distortion_token_weighted=record.distortion_token_weighted)
            start = parts.said["sent"]["distortion"]
            refined = Refined(start, min(start, record.distortion_token_weighted))
            self.book.refined(parts.source, parts.destination, refined, self.now_s())
        if parts.single:
            self.book.freed(ticket.number, parts.destination)
            self.book.forget(ticket.number, parts.source)
        self._shut(ticket)

    def _close(self, ticket: OpenRequest, outcome: str, reason: str) -> None:
        """It ends without its tokens."""
        ticket.give_up(outcome, reason, self.terms.compute)
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        self._shut(ticket)

    def _shut(self, ticket: OpenRequest) -> None:
        self._tries.pop(ticket.number, None)
        del self._open[ticket.prompt.request_id]
        self._done(ticket)

    def _again(self, ticket: OpenRequest, trouble: str, ended: Message | None = None) -> None:
        """The try has failed: give it up on both sides, and have another one, if there may be one. ended: what its sender said of that."""
        self._abandon(ticket, ended)
        ticket.troubles.append(trouble)
        if len(ticket.troubles) >= TRIES:
            self._close(ticket, "failed", "; ".join(dict.fromkeys(ticket.troubles)))
        else:
            self._waiting.appendleft(ticket)

    def _abandon(self, ticket: OpenRequest, ended: Message | None = None) -> None:
        """Whoever still has something of it is told to drop it; each answers when it has, and until then the book holds its place."""
        self._tries.pop(ticket.number, None)
        if parts := ticket.parts:
            if ended := ended or parts.said.get("sent"):
                ticket.lost(parts, ended, self.book.expect.layout.model)
            elif parts.source in self.roster.members:
                self._former[ticket.number] = ticket, parts
            for name in (parts.source, parts.destination):
                if name in self.roster.members and self.roster.members[name].state != "starting":
                    self._tell(name, "cancel", request_id=ticket.number)
        ticket.parts = None

    def _tell(self, name: str, op: str, /, **fields: object) -> None:
        """Of one that has died the end is told by its own event."""
        with suppress(WorkerDied):
            self.roster.members[name].worker.tell(op, **fields)

    def _lost(self, name: str) -> None:
        """A worker has ended: what it was at is tried again elsewhere."""
        role, starting = self.roster.members[name].role, self.roster.members[name].state == "starting"
        death = self.roster.lost(name)
        self.book.leave(name)
        if role == "decode":
            self._tell_prefill("unpeer", name=name)
        self._former = {number: former for number, former in self._former.items() if former[1].source != name}
        hit = [t for t in self._tries.values() if t.parts and name in (t.parts.source, t.parts.destination)]
        for ticket in reversed(hit):
            assert ticket.parts is not None
            if name == ticket.parts.source and "sent" in ticket.parts.said:
                continue  # the other one has all it needs
            self._again(ticket, str(death).partition(";")[0])
        if self.terms.replace and not starting:
            self.roster.start(self.roster.new_name(role), role)
        if not self.roster.will_serve(role):
            raise death
        self._place()

    def _begin(self, name: str) -> None:
        """A worker is ready in its role, and learns of the run."""
        member, terms = self.roster.members[name], self.terms
        self.book.leave(name)
        self.book.enter(name, member.role)
        if terms.longest:
            self._tell(name, "prepare", tokens=terms.longest)
        if member.role == "decode":
            self._tell(name, "run", origin_s=self.origin_s, network=asdict(terms.network))
            return
        self._tell(
            name,
            "run",
            origin_s=self.origin_s,
            bitrate=terms.bitrate,
            network=asdict(terms.network),
            pacing=terms.pacing,
            profile=asdict(terms.profile) if terms.profile else None,
            peers=self.roster.addresses(),
        )

    def _tell_prefill(self, op: str, /, **fields: object) -> None:
        for other in self.roster.serving("prefill"):
            self._tell(other, op, **fields)

    def _let_drained(self) -> None:
        for name in [name for name, member in self.roster.members.items() if member.state == "draining"]:
            if self.book.holds_nothing(name):
                if self.roster.members[name].role == "decode":
                    self._tell_prefill("unpeer", name=name)
                self.book.leave(name)
                self.roster.drained(name)

    def _place(self) -> None:
        """In the order they came, as far as there are workers, and memory to decode in."""
        while self._waiting:
            ticket = self._waiting[0]
            prompt = ticket.rest()
            sources = [self.book.prefill[name] for name in self.roster.serving("prefill")]
            targets = [
                self.book.decode[name] for name in self.roster.serving("decode") if self.book.has_room(name, prompt.isl + prompt.osl)
            ]
            if not sources or not targets:
                return
            source, target = self._pair(prompt, sources, targets)
            self._waiting.popleft()
            ticket.number = self._numbers()
            ticket.parts = RequestEvents(prompt, source, target)
            self._tries[ticket.number] = ticket
            self.book.promise(ticket.number, source, target, prompt.isl, prompt.osl, self.now_s())
            self._tell(
                source,
                "submit",
                request_id=ticket.number,
                tokens=prompt.tokens,
                destination=target,
                deadline_s=self.book.expect.deadline_s(prompt.arrival_s, prompt.isl),
                more=prompt.more(),
            )

    def _pair(self, prompt: Prompt, sources: Sequence[PrefillReservations], targets: Sequence[DecodeReservations]) -> tuple[str, str]:
        """As routing decides, but over a way that has failed lately only where there is no other."""
        view, now_s = RequestView(prompt.request_id, prompt.isl, prompt.osl, prompt.arrival_s), self.now_s()
        from_, to = list(sources), list(targets)
        while True:

            def quote_s(p: int, d: int) -> float:
                return self.book.quote_s(from_[p].name, to[d].name, prompt.isl, prompt.arrival_s, now_s)

            p, d = self.routing.decide(now_s, view, from_, to, quote_s)
            if not self.book.suspect(from_[p].name, to[d].name, now_s) or len(from_) + len(to) == 2:
                return from_[p].name, to[d].name
            (to if len(to) > 1 else from_).pop(d if len(to) > 1 else p)

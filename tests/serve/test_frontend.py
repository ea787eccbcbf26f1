"""The frontend with made-up workers, which answer, refuse, fall silent for a while, die, come and change their role in any order.

Laws: every request is done once; its tokens are those of an undisturbed run, and those that were streamed are the same; and at the end
nothing is promised to anybody.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.build import build
from abkt.serve.control import WorkerConfig
from abkt.serve.frontend.frontend import TRIES, Frontend
from abkt.serve.frontend.process import WorkerDied
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.frontend.reservations import Expectations, Reservations
from abkt.serve.frontend.roles import RoleController
from abkt.serve.frontend.ticket import OpenRequest, Terms
from abkt.serve.frontend.workers import GONE, Workers, WorkerState
from abkt.spec import KVLayout, ModelSpec

LAYOUT = KVLayout(ModelSpec("made-up", layers=2, kv_heads=1, head_dim=8, dtype="float32"), blocks=40)
STOP = 3


def next_token(tokens: list[int]) -> int:
    """What the made-up model says after these."""
    return (7 * len(tokens) + 3 * sum(tokens)) % 11


def answer(prompt: Prompt) -> list[int]:
    tokens = list(prompt.tokens)
    while len(tokens) - prompt.isl < prompt.osl:
        tokens.append(next_token(tokens))
        if tokens[-1] == prompt.stop:
            break
    return tokens[prompt.isl :]


@dataclass
class MadeUp:
    """A worker's side of every message, and `work`, which does one thing of what it has to do. peers: by name, for prefill."""

    name: str
    say: Any
    role: str = "prefill"
    jobs: list[dict[str, Any]] = field(default_factory=list)  # prefill: to do; decode: in the batch
    sending: list[tuple[dict[str, Any], int]] = field(default_factory=list)
    unwanted: set[int] = field(default_factory=set)
    sent_bytes: int = 0
    dead: bool = False

    def tell(self, op: str, /, **fields: Any) -> None:
        if self.dead:
            raise WorkerDied(f"worker {self.name} ended")
        number = fields.get("request_id", -1)
        if op == "submit":
            self.jobs.append(fields)
        elif op == "role":
            assert not self.jobs
            assert not self.sending
            self.role = fields["role"]
            self.say(self.name, {"event": "ready", "role": self.role, "address": self.name})
        elif op == "cancel" and self.role == "prefill":
            for job in [job for job in self.jobs if job["request_id"] == number]:
                self.jobs.remove(job)
                self.say(self.name, {"event": "failed", "request_id": number, "reason": "cancelled"})
            for sent in [sent for sent in self.sending if sent[0]["request_id"] == number]:
                self.sending.remove(sent)
                self.say(self.name, {"event": "failed", "request_id": number, "reason": "cancelled"})
        elif op == "withdraw":
            self.say(self.name, {"event": "withdrawn", "request_ids": [job["request_id"] for job in self.jobs]})
            self.jobs.clear()
        elif op == "cancel":
            self.unwanted.add(number)
            self.jobs = [job for job in self.jobs if job["request_id"] != number]
            self.say(self.name, {"event": "gone", "request_id": number})

    def work(self, others: dict[str, MadeUp], fails: bool) -> None:
        if self.role == "decode" and self.jobs:
            job = self.jobs[0]
            if fails and len(job["out"]) == len(job["tokens"]) + 1:
                self.jobs.remove(job)
                self._say("failed", job, reason="what has come is damaged")
            else:
                self._decode(job)
        elif self.sending:
            self._send(*self.sending.pop(0), others, fails)
        elif self.role == "prefill" and self.jobs:
            job = self.jobs.pop(0)
            token = next_token(list(job["tokens"]))
            last = job["more"]["osl"] == 1 or token == job["more"]["stop"]
            times = {"prefill_start_s": 0.0, "prefill_end_s": 1.0, "encode_end_s": 1.0, "encode_busy_s": 0.0}
            kind = {"mode": "raw", "order": "", "depth_bits": 0, "price": 0.0, "estimate_bytes_per_s": None, "pacing": "none", "codec": "c"}
            self._say("prefilled", job, token=token, margin=1.0, last=last, **times, **kind)
            if not last:
                self.sending.append((job, token))

    def _send(self, job: dict[str, Any], token: int, others: dict[str, MadeUp], fails: bool) -> None:
        target = others.get(job["destination"])
        if fails or target is None or target.dead or job["request_id"] in target.unwanted:
            if fails:  # in the middle: some bytes had left
                self.sent_bytes += 7
                self._say("failed", job, reason="the way is cut", mode="raw", wire_bytes=7, granted_s=1.0, ended_s=2.0, pacing="none")
            else:
                self._say("failed", job, reason="the way is cut")
            return
        target.jobs.append({**job, "out": [*job["tokens"], token]})
        stats = dict.fromkeys(("granted_s", "last_byte_s", "acked_s", "wire_busy_s", "wire_bytes", "calls", "cut", "retries", "resumes"), 1)
        self.sent_bytes += 1
        self._say("sent", job, distortion=0.0, **stats)

    def _decode(self, job: dict[str, Any]) -> None:
        job["out"].append(next_token(job["out"]))
        made, more = job["out"][len(job["tokens"]) :], job["more"]
        if len(made) < more["osl"] and made[-1] != more["stop"]:
            if more["stream"]:
                self.say(self.name, {"event": "tokens", "tokens": [(job["request_id"], made[-1])]})
            return
        self.jobs.remove(job)
        times = dict.fromkeys(("received_s", "expand_end_s", "expand_busy_s", "decode_token_s", "decode_busy_s", "finish_s"), 2.0)
        good = {
            "distortion_start": 0.0,
            "distortion_final": 0.0,
            "distortion_token_weighted": 0.0,
            "refine_bytes": 0,
            "refine_finish_s": None,
        }
        self._say("finished", job, tokens=made, margins=[1.0] * (len(made) - 1), **times, **good)

    def _say(self, event: str, job: dict[str, Any], **fields: Any) -> None:
        self.say(self.name, {"event": event, "request_id": job["request_id"], **fields})

    def watch(self, now_s: float) -> None: ...

    def death(self) -> WorkerDied:
        return WorkerDied(f"worker {self.name} ended")

    def end(self, ask: bool = True) -> None:
        self.dead = True


class MadeUpRoster(Workers):
    def __init__(self) -> None:
        super().__init__(lambda name, role, number: WorkerConfig(name, role, "", 1, 16, 1), Path("/nowhere"))
        self.workers: dict[str, MadeUp] = {}

    def start(self, name: str, role: str) -> None:
        worker = self.workers[name] = MadeUp(name, lambda who, message: self.events.put((who, message)), role)
        self.members[name] = WorkerState(worker, role)  # type: ignore[arg-type]
        worker.say(name, {"event": "ready", "role": role, "address": name})


def frontend(
    roster: MadeUpRoster, done: list[OpenRequest], routing: str = "round_robin.RoundRobin", roles: dict[str, Any] | None = None
) -> Frontend:
    raw = {"_target_": "abkt.policy.bitrate.fixed.Raw"}
    network = Capacity.constant(1e6)
    terms = Terms(raw, network, "none", 1.0, None, most_tokens=300, refusal="300 at most")
    policy = build({"_target_": f"abkt.policy.routing.{routing}"})
    counter = itertools.count()
    book = Reservations(Expectations(None, LAYOUT, 1.0), raw, network)
    moved = RoleController({"_target_": f"abkt.policy.roles.{roles.pop('of')}", **roles}) if roles else None
    return Frontend(roster, book, terms, policy, 0.0, lambda: next(counter), done.append, roles=moved)


def workers(roster: MadeUpRoster, prefill: int = 2, decode: int = 2) -> MadeUpRoster:
    for role, count in (("prefill", prefill), ("decode", decode)):
        for i in range(count):
            roster.start(f"{role[0]}{i}", role)
    roster.wait(1.0)
    return roster


def prompt(i: int, random: Random, stream: bool) -> Prompt:
    tokens = tuple(random.randrange(11) for _ in range(random.randint(1, 120)))
    return Prompt(i, 0.0, tokens, random.randint(1, 40), stop=random.choice((-1, STOP)), stream=stream)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(["round_robin.RoundRobin", "least_loaded.LeastLoaded", "load_aware.LoadAwareRouting"]))
def test_whatever_happens_every_request_is_done_once_and_nothing_stays_promised(seed: int, routing: str) -> None:
    random, roster, done = Random(seed), workers(MadeUpRoster()), []
    front = frontend(roster, done, routing)
    given_ = [prompt(i, random, stream=bool(i % 2)) for i in range(12)]
    streamed: dict[int, list[int]] = {p.request_id: [] for p in given_}
    to_come, cancelled, newcomers = list(given_), set(), itertools.count(2)
    for _ in range(20_000):
        if len(done) == len(given_) and not any(w.jobs or w.sending for w in roster.workers.values() if not w.dead):
            break
        chance = random.random()
        if to_come and chance < 0.05:
            front.submit(OpenRequest(to_come[0], on_tokens=streamed[to_come.pop(0).request_id].extend))
        elif chance < 0.06 and given_[0].request_id not in cancelled:
            front.cancel(0)
            cancelled.add(0)
        elif chance < 0.07:
            name = random.choice(list(roster.members))
            role = roster.members[name].role
            if len(roster.serving(role)) > 1:
                roster.workers[name].dead = True
                roster.events.put((name, None))
                front.change(f"{role[0]}{next(newcomers)}", role)
        elif chance < 0.08:
            name = random.choice(list(roster.members))
            then = random.choice(["prefill", "decode", GONE])
            if roster.members[name].state == "ready" and len(roster.serving(roster.members[name].role)) > 1:
                front.change(name, then)
                if then == GONE:
                    front.change(f"n{next(newcomers)}", random.choice(["prefill", "decode"]))
        else:
            alive = {name: worker for name, worker in roster.workers.items() if not worker.dead}
            random.choice(list(alive.values())).work(roster.workers, fails=random.random() < 0.05)
        front.step(0.0)
    while not roster.events.empty():
        front.step(0.0)
    assert sorted(t.prompt.request_id for t in done) == list(range(12))
    for ticket in done:
        record, stream = ticket.record, streamed[ticket.prompt.request_id]
        assert record is not None
        if record.outcome == "completed":
            assert ticket.tokens == answer(ticket.prompt)
            assert len(ticket.margins) == len(ticket.tokens)
            assert stream == (ticket.tokens if ticket.prompt.stream else [])
        else:
            assert record.reason == "cancelled" or len(ticket.troubles) == TRIES
            assert stream == answer(ticket.prompt)[: len(stream)]
    assert sum(ticket.wire_bytes for ticket in done) == sum(worker.sent_bytes for worker in roster.workers.values())
    assert not front._former
    assert all(front.book.holds_nothing(name) for name in roster.members)
    assert all(book.free_blocks == LAYOUT.blocks and book.kv_used == 0 for book in front.book.decode.values())


def finish(front: Frontend, roster: MadeUpRoster, count: int, done: list[OpenRequest]) -> None:
    for _ in range(10_000):
        if len(done) >= count:
            return
        for worker in list(roster.workers.values()):
            if not worker.dead:
                worker.work(roster.workers, fails=False)
        front.step(0.0)
    raise AssertionError("it never came")


def test_memory_to_decode_in_is_reserved_before_prefill_begins() -> None:
    """A pool of 40 blocks of 16 holds two requests of 300 tokens: the third is not even prefilled."""
    roster, done = workers(MadeUpRoster(), 1, 1), []
    front = frontend(roster, done)
    for i in range(3):
        front.submit(OpenRequest(Prompt(i, 0.0, (1,) * 260, 40)))
    assert (len(roster.workers["p0"].jobs), front.open, front.waiting) == (2, 3, 1)
    assert front.book.decode["d0"].kv_used == pytest.approx(38 / 40)
    finish(front, roster, 3, done)
    assert [t.tokens for t in done] == [answer(t.prompt) for t in done]


def test_a_way_that_failed_is_avoided_while_there_is_another() -> None:
    roster, done = workers(MadeUpRoster()), []
    front = frontend(roster, done)
    roster.workers["d0"].unwanted = set(range(100))  # it takes nothing
    for i in range(8):
        front.submit(OpenRequest(Prompt(i, 0.0, (i,) * 20, 5)))
    finish(front, roster, 8, done)
    assert {t.record.outcome for t in done if t.record} == {"completed"}
    assert {t.record.decode_node for t in done if t.record} == {"d1"}
    assert sum(bool(t.troubles) for t in done) == 4  # those that had been placed on it


def test_bytes_of_a_try_that_was_given_up_are_its_senders_to_tell() -> None:
    """Both workers were told to drop it; what the decode worker says of that first is no account of what left."""
    roster, done = workers(MadeUpRoster(), 1, 1), []
    front = frontend(roster, done)
    ticket = OpenRequest(Prompt(0, 0.0, (1, 2, 3), 5))
    front.submit(ticket)
    roster.workers["p0"].work(roster.workers, fails=False)
    front.step(0.0)
    number, roster.workers["p0"].sending = ticket.number, []
    front.cancel(0)
    roster.events.put(("d0", {"event": "failed", "request_id": number, "reason": "what has come is damaged"}))
    ended = {"mode": "raw", "wire_bytes": 7, "granted_s": 1.0, "ended_s": 2.0, "pacing": "none"}
    roster.events.put(("p0", {"event": "failed", "request_id": number, "reason": "cancelled", **ended}))
    while not roster.events.empty():
        front.step(0.0)
    assert [(transfer.outcome, transfer.wire_bytes, transfer.reason) for transfer in ticket.failed] == [("failed", 7, "cancelled")]
    assert not front._former


def test_when_nothing_helps_the_request_fails_and_says_what_was_tried() -> None:
    roster, done = workers(MadeUpRoster(), 1, 1), []
    front = frontend(roster, done)
    roster.workers["d0"].unwanted = set(range(100))
    front.submit(OpenRequest(Prompt(0, 0.0, (1,), 5)))
    finish(front, roster, 1, done)
    record = done[0].record
    assert record is not None
    assert (record.outcome, record.reason, len(done[0].troubles)) == ("failed", "p0: the way is cut", TRIES)


def test_the_last_worker_of_a_role_cannot_leave_it_but_can_die() -> None:
    roster = workers(MadeUpRoster(), 1, 2)
    front = frontend(roster, [])
    with pytest.raises(ValueError, match="worker p0 is the last one for prefill; another one must come first"):
        front.change("p0", "decode")
    with pytest.raises(ValueError, match="role 'both' is none; it must be one of prefill, decode"):
        front.change("d0", "both")
    front.change("d0", "prefill")
    with pytest.raises(ValueError, match="worker d1 is the last one for decode"):
        front.change("d1", GONE)
    roster.workers["d1"].dead = True
    roster.events.put(("d1", None))
    front.step(0.0)  # d0 is ready for prefill
    with pytest.raises(WorkerDied, match="worker d1 ended"):
        front.step(0.0)


def test_a_quote_is_what_the_pairs_policy_would_send_over_what_it_saw_of_the_link() -> None:
    roster, done = workers(MadeUpRoster(), 1, 1), []
    front = frontend(roster, done)
    raw_bytes = 100 * LAYOUT.model.kv_bytes_per_token
    assert front.book.quote_s("p0", "d0", 100, 0.0, 0.0) == pytest.approx(raw_bytes / 1e6)
    front.book.promise(0, "p0", "d0", 50, 5, 0.0)
    assert front.book.quote_s("p0", "d0", 100, 0.0, 0.0) == pytest.approx(1.5 * raw_bytes / 1e6)
    assert math.isclose(front.book.prefill["p0"].queued_s, front.book.prefill["p0"].prefill_s(50))


def test_a_policy_of_roles_moves_a_worker_once_it_has_drained() -> None:
    """Prompts queue up on the one prefill worker, and two decode workers have little to do."""
    roster, done = workers(MadeUpRoster(), 1, 2), []
    front = frontend(roster, done, roles={"of": "arrow.Arrow", "period_s": 1e-3, "ttft_slo_s": 0.1, "tpot_slo_s": 10.0})
    front.submit(OpenRequest(Prompt(0, 0.0, (1,) * 100, 9)))
    front.submit(OpenRequest(Prompt(1, 0.0, (2,) * 100, 9)))
    front.step(0.0)
    draining = [name for name, member in roster.members.items() if member.state == "draining"]
    assert len(draining) == 1
    assert front.book.decode[draining[0]].promised  # it keeps its role until it has decoded what was promised
    finish(front, roster, 2, done)
    front.step(0.0)
    assert [t.tokens for t in done] == [answer(t.prompt) for t in done]
    assert [(name, role) for _, name, role in front.changed] == [(draining[0], ""), (draining[0], "prefill")]
    assert sorted(roster.serving("prefill")) == sorted(["p0", draining[0]])


def test_who_drains_gives_back_the_prompts_that_it_has_not_begun() -> None:
    """Eight prompts in turn on p0 and p1; p0 has computed one of its four and sends it. The other three go to p1."""
    roster, done = workers(MadeUpRoster()), []
    front = frontend(roster, done)
    for i in range(8):
        front.submit(OpenRequest(Prompt(i, 0.0, (i,) * 20, 5)))
    roster.workers["p0"].work(roster.workers, fails=False)
    front.step(0.0)
    front.change("p0", "decode")
    front.submit(OpenRequest(Prompt(8, 0.0, (8,) * 20, 5)))
    front.step(0.0)
    placed = [job["tokens"][0] for job in roster.workers["p1"].jobs]
    assert placed == [1, 3, 5, 7, 8, 2, 4, 6]  # the ninth came before the worker had answered
    finish(front, roster, 9, done)
    assert sorted((t.record.request_id, t.record.prefill_node) for t in done if t.record)[0] == (0, "p0")
    assert {t.record.prefill_node for t in done if t.record and t.record.request_id} == {"p1"}
    assert all(t.tokens == answer(t.prompt) and not t.troubles for t in done)
    front.step(0.0)
    assert roster.settled
    assert all(front.book.holds_nothing(name) for name in roster.members)


@pytest.mark.parametrize("of", ["colocated.Colocated", "conditional.Conditional", "load_aware.LoadAwareRoles"])
def test_roles_that_need_a_worker_for_both_are_refused(of: str) -> None:
    with pytest.raises(ValueError, match="which real ones do not; take static, arrow, or load_aware"):
        RoleController({"_target_": f"abkt.policy.roles.{of}"})
    assert not RoleController({"_target_": "abkt.policy.roles.static.Static"}).moves
    assert RoleController({"_target_": "abkt.policy.roles.load_aware.LoadAwareRoles", "lend_cycles": False}).moves

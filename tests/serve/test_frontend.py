"""The frontend with made-up workers, which answer, fail, die, start and change their role in any order.

Every request must be done once. Its tokens must be those of an undisturbed run, and streamed tokens the same. At the end nothing may be
reserved on any worker.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.build import build
from abkt.serve.commands import CancelAttempt, ChangeRole, FinishAttempt, SubmitPrompt, WithdrawPrompts, WorkerCommand, WorkerConfig
from abkt.serve.engine.generation import TokenLogprobs
from abkt.serve.errors import WorkerDied
from abkt.serve.frontend.frontend import STARTS, TRIES, Frontend
from abkt.serve.frontend.open_request import OpenRequest
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.frontend.reservations import Expectations, Reservations
from abkt.serve.frontend.roles import WorkerRoles
from abkt.serve.frontend.terms import RunTerms
from abkt.serve.frontend.workers import GONE, Workers, WorkerState
from abkt.serve.messages import encode
from abkt.serve.reports import (
    AttemptCancelled,
    AttemptFailed,
    AttemptFinished,
    BrokenTransfer,
    PlannedTransfer,
    Prefilled,
    PromptsWithdrawn,
    Ready,
    StreamedTokens,
    TransferSent,
    WorkerReport,
    decode_report,
)
from abkt.spec import KVLayout, ModelSpec

LAYOUT = KVLayout(ModelSpec("made-up", layers=2, kv_heads=1, head_dim=8, dtype="float32"), blocks=40)
STOP = 3


def listener(into: list[int]) -> Callable[[list[int], list[TokenLogprobs]], None]:
    return lambda tokens, logprobs: into.extend(tokens)


def next_token(tokens: Sequence[int]) -> int:
    """The token that the made-up model chooses after these."""
    return (7 * len(tokens) + 3 * sum(tokens)) % 11


def answer(prompt: Prompt) -> list[int]:
    tokens = list(prompt.tokens)
    while len(tokens) - prompt.isl < prompt.osl:
        tokens.append(next_token(tokens))
        if tokens[-1] in prompt.stop:
            break
    return tokens[prompt.isl :]


@dataclass
class FakeJob:
    """A prompt on a made-up worker. out: its prompt tokens and those generated so far."""

    prompt: SubmitPrompt
    out: list[int]


@dataclass
class FakeWorker:
    """Takes the place of a WorkerProcess. It answers commands at once; each call of `work` does one step of its other work.

    jobs: prompts to compute on a prefill worker, requests in the batch of a decode worker. sending: prompts whose KV is to be sent.
    refused: attempts that a decode worker does not take. ended: attempts whose client wants no further token.
    """

    name: str
    report: Callable[[str, WorkerReport | None], None]
    role: str = "prefill"
    jobs: list[FakeJob] = field(default_factory=list)
    sending: list[FakeJob] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    sent_bytes: int = 0
    dead: bool = False

    def tell(self, command: WorkerCommand) -> None:
        if self.dead:
            raise WorkerDied(f"worker {self.name} ended")
        match command:
            case SubmitPrompt():
                self.jobs.append(FakeJob(command, list(command.tokens)))
            case ChangeRole():
                assert not self.jobs
                assert not self.sending
                self.role = command.role
                self.say(Ready(self.role, self.name))
            case CancelAttempt() if self.role == "prefill":
                for waiting in (self.jobs, self.sending):
                    for job in [job for job in waiting if job.prompt.attempt_id == command.attempt_id]:
                        waiting.remove(job)
                        self.say(AttemptFailed(command.attempt_id, "cancelled"))
            case CancelAttempt():
                self.refused.add(command.attempt_id)
                self.jobs = [job for job in self.jobs if job.prompt.attempt_id != command.attempt_id]
                self.say(AttemptCancelled(command.attempt_id))
            case FinishAttempt():
                self.ended.add(command.attempt_id)
            case WithdrawPrompts():
                self.say(PromptsWithdrawn(tuple(job.prompt.attempt_id for job in self.jobs)))
                self.jobs.clear()

    def say(self, report: WorkerReport) -> None:
        """Deliver a report in the form in which it would come through the pipe."""
        self.report(self.name, decode_report(encode(report)))

    def work(self, others: dict[str, FakeWorker], fails: bool) -> None:
        if self.role == "decode" and self.jobs:
            job = self.jobs[0]
            if fails and len(job.out) == len(job.prompt.tokens) + 1:
                self.jobs.remove(job)
                self.say(AttemptFailed(job.prompt.attempt_id, "the KV that arrived is damaged"))
            else:
                self._decode(job)
        elif self.sending:
            self._send(self.sending.pop(0), others, fails)
        elif self.role == "prefill" and self.jobs:
            job = self.jobs.pop(0)
            job.out.append(next_token(job.out))
            last = job.prompt.generation.ends(job.out[-1:])
            plan = PlannedTransfer(1.0, 0.0, "raw", "", 0, 0.0, math.nan, "none", "c")
            self.say(Prefilled(job.prompt.attempt_id, 0.0, 1.0, job.out[-1], 1.0, None if last else plan))
            if not last:
                self.sending.append(job)

    def _send(self, job: FakeJob, others: dict[str, FakeWorker], fails: bool) -> None:
        target, attempt_id = others.get(job.prompt.destination), job.prompt.attempt_id
        if fails:  # the transfer breaks in the middle: some bytes were sent
            self.sent_bytes += 7
            self.say(AttemptFailed(attempt_id, "the link is cut", BrokenTransfer("raw", 7, 1.0, 2.0, "none")))
        elif target is None or target.dead or attempt_id in target.refused:
            self.say(AttemptFailed(attempt_id, "the link is cut"))
        else:
            target.jobs.append(job)
            self.sent_bytes += 1
            self.say(TransferSent(attempt_id, 1.0, 1.0, 1.0, 1.0, 1, 1, 1, 1, 1, distortion=0.0, refining=False))

    def _decode(self, job: FakeJob) -> None:
        attempt_id, generation = job.prompt.attempt_id, job.prompt.generation
        if attempt_id not in self.ended:
            job.out.append(next_token(job.out))
        made = job.out[len(job.prompt.tokens) :]
        if not generation.ends(made) and attempt_id not in self.ended:
            if generation.stream:
                self.say(StreamedTokens(((attempt_id, made[-1], ()),)))
            return
        self.jobs.remove(job)
        times = dict.fromkeys(("received_s", "expand_end_s", "expand_busy_s", "decode_token_s", "decode_busy_s", "finish_s"), 2.0)
        quality = dict.fromkeys(("distortion_start", "distortion_final", "distortion_token_weighted"), 0.0)
        margins = (1.0,) * (len(made) - 1)
        rest: dict[str, Any] = {"swaps": (), "refine_bytes": 0, "refine_finish_s": math.nan}
        self.say(AttemptFinished(attempt_id, **times, tokens=tuple(made), margins=margins, **quality, **rest))

    def watch(self, now_s: float, silence_s: float) -> None: ...

    def death(self) -> WorkerDied:
        return WorkerDied(f"worker {self.name} ended")

    def end(self, ask: bool = True) -> None:
        self.dead = True


class AnyOrder:
    """Events of several workers, in any order. Those of one worker come in theirs, as through a pipe; pipes do not wait for one another."""

    def __init__(self, random: Random) -> None:
        self._random, self._pipes = random, dict[str, deque[tuple[str, WorkerReport | None]]]()

    def put(self, event: tuple[str, WorkerReport | None]) -> None:
        self._pipes.setdefault(event[0], deque()).append(event)

    def get_nowait(self) -> tuple[str, WorkerReport | None]:
        if self.empty():
            raise Empty
        return self._random.choice([pipe for pipe in self._pipes.values() if pipe]).popleft()

    def empty(self) -> bool:
        return not any(self._pipes.values())


class FakeWorkers(Workers):
    """fakes: all workers by name, including those that have ended."""

    def __init__(self) -> None:
        super().__init__(lambda name, role, number: WorkerConfig(name, role, "", 1, 16, 1), Path("/nowhere"))
        self.fakes: dict[str, FakeWorker] = {}

    def start(self, name: str, role: str) -> None:
        worker = self.fakes[name] = FakeWorker(name, lambda who, report: self.events.put((who, report)), role)
        self.states[name] = WorkerState(worker, role)  # type: ignore[arg-type]
        worker.say(Ready(role, name))


def frontend(
    workers: FakeWorkers, done: list[OpenRequest], routing: str = "round_robin.RoundRobin", roles: dict[str, Any] | None = None
) -> Frontend:
    raw = {"_target_": "abkt.policy.bitrate.fixed.Raw"}
    network = Capacity.constant(1e6)
    terms = RunTerms(raw, network, "none", 1.0, None, most_tokens=300, limits="300 at most")
    policy = build({"_target_": f"abkt.policy.routing.{routing}"})
    counter = itertools.count()
    reservations = Reservations(Expectations(None, LAYOUT, 1.0), raw, network)
    moved = WorkerRoles({"_target_": f"abkt.policy.roles.{roles.pop('of')}", **roles}) if roles else None
    return Frontend(workers, reservations, terms, policy, 0.0, lambda: next(counter), done.append, roles=moved)


def started(prefill: int = 2, decode: int = 2) -> FakeWorkers:
    workers = FakeWorkers()
    for role, count in (("prefill", prefill), ("decode", decode)):
        for i in range(count):
            workers.start(f"{role[0]}{i}", role)
    workers.wait(1.0)
    return workers


def prompt(i: int, random: Random, stream: bool) -> Prompt:
    tokens = tuple(random.randrange(11) for _ in range(random.randint(1, 120)))
    return Prompt(i, 0.0, tokens, random.randint(1, 40), stop=random.choice(((), (STOP,))), stream=stream)


@settings(max_examples=60)
@example(448, "least_loaded.LeastLoaded")  # a sender drains while it has to report on an attempt whose decode worker is lost
@given(st.integers(0, 10**6), st.sampled_from(["round_robin.RoundRobin", "least_loaded.LeastLoaded", "load_aware.LoadAwareRouting"]))
def test_whatever_happens_every_request_is_done_once_and_nothing_stays_reserved(seed: int, routing: str) -> None:
    random, workers, done = Random(seed), started(), []
    workers.events = AnyOrder(random)  # type: ignore[assignment]
    front = frontend(workers, done, routing)
    given_ = [prompt(i, random, stream=bool(i % 2)) for i in range(12)]
    streamed: dict[int, list[int]] = {p.request_id: [] for p in given_}
    to_come, cancelled, newcomers = list(given_), set(), itertools.count(2)
    ended: set[int] = set()
    for _ in range(20_000):
        if len(done) == len(given_) and not any(w.jobs or w.sending for w in workers.fakes.values() if not w.dead):
            break
        chance = random.random()
        if to_come and chance < 0.05:
            front.submit(OpenRequest(to_come[0], on_tokens=listener(streamed[to_come.pop(0).request_id])))
        elif chance < 0.06 and given_[0].request_id not in cancelled:
            front.cancel(0)
            cancelled.add(0)
        elif chance < 0.063:
            if begun := [i for i, tokens in streamed.items() if tokens]:
                ended.add(random.choice(begun))
                front.finish(max(ended))
        elif chance < 0.07:
            name = random.choice(list(workers.states))
            role = workers.states[name].role
            if len(workers.serving(role)) > 1:
                workers.fakes[name].dead = True
                workers.events.put((name, None))
                front.change(f"{role[0]}{next(newcomers)}", role)
        elif chance < 0.08:
            name = random.choice(list(workers.states))
            then = random.choice(["prefill", "decode", GONE])
            if workers.states[name].phase == "ready" and len(workers.serving(workers.states[name].role)) > 1:
                front.change(name, then)
                if then == GONE:
                    front.change(f"n{next(newcomers)}", random.choice(["prefill", "decode"]))
        else:
            alive = {name: worker for name, worker in workers.fakes.items() if not worker.dead}
            random.choice(list(alive.values())).work(workers.fakes, fails=random.random() < 0.05)
        if random.random() < 0.8:
            front.step(0.0)
    while not workers.events.empty():
        front.step(0.0)
    assert sorted(t.prompt.request_id for t in done) == list(range(12))
    for request in done:
        record, stream = request.record, streamed[request.prompt.request_id]
        assert record is not None
        if record.outcome == "completed":
            whole = answer(request.prompt)
            assert request.tokens == (whole[: len(request.tokens)] if request.prompt.request_id in ended else whole)
            assert len(request.margins) == len(request.tokens)
            assert stream == (request.tokens if request.prompt.stream else [])
        else:
            assert record.reason == "cancelled" or len(request.failures) == TRIES or request.ended
            assert stream == answer(request.prompt)[: len(stream)]
    assert sum(request.wire_bytes for request in done) == sum(worker.sent_bytes for worker in workers.fakes.values())
    assert all(front.reservations.holds_nothing(name) for name in workers.states)
    assert not any(front._attempts.awaits(name) for name in workers.fakes)
    assert all(decode.free_blocks == LAYOUT.blocks and decode.kv_used == 0 for decode in front.reservations.decode.values())


def finish(front: Frontend, workers: FakeWorkers, count: int, done: list[OpenRequest]) -> None:
    for _ in range(10_000):
        if len(done) >= count:
            return
        for worker in list(workers.fakes.values()):
            if not worker.dead:
                worker.work(workers.fakes, fails=False)
        front.step(0.0)
    raise AssertionError("it never came")


def test_the_first_token_is_streamed_first_even_if_its_report_comes_late() -> None:
    """The decode worker's tokens arrive before the prefill worker's report, which came over another pipe."""
    workers, done = started(1, 1), []
    front, streamed = frontend(workers, done), list[int]()
    asked = Prompt(0, 0.0, (1, 2, 3), 6, stream=True)
    front.submit(OpenRequest(asked, on_tokens=listener(streamed)))
    for name in ("p0", "p0", "d0", "d0"):
        workers.fakes[name].work(workers.fakes, fails=False)
    events = [workers.events.get_nowait() for _ in range(4)]
    for event in sorted(events, key=lambda event: event[0]):  # d0 before p0
        workers.events.put(event)
    for _ in range(4):
        front.step(0.0)
    assert streamed == answer(asked)[:3]
    finish(front, workers, 1, done)
    assert streamed == answer(asked)


def test_decode_memory_is_reserved_before_prefill_begins() -> None:
    """A pool of 40 blocks of 16 tokens holds two requests of 300 tokens. The third one is not prefilled yet."""
    workers, done = started(1, 1), []
    front = frontend(workers, done)
    for i in range(3):
        front.submit(OpenRequest(Prompt(i, 0.0, (1,) * 260, 40)))
    assert (len(workers.fakes["p0"].jobs), front.open, front.waiting) == (2, 3, 1)
    assert front.reservations.decode["d0"].kv_used == pytest.approx(38 / 40)
    finish(front, workers, 3, done)
    assert [t.tokens for t in done] == [answer(t.prompt) for t in done]


def test_a_failed_pair_of_workers_is_avoided_while_there_is_another() -> None:
    workers, done = started(), []
    front = frontend(workers, done)
    workers.fakes["d0"].refused = set(range(100))  # it takes no KV
    for i in range(8):
        front.submit(OpenRequest(Prompt(i, 0.0, (i,) * 20, 5)))
    finish(front, workers, 8, done)
    assert {t.record.outcome for t in done if t.record} == {"completed"}
    assert {t.record.decode_node for t in done if t.record} == {"d1"}
    assert sum(bool(t.failures) for t in done) == 4  # only the requests that were placed on it first


def test_the_sender_reports_the_bytes_of_an_abandoned_attempt() -> None:
    """Both workers are told to drop the attempt. The decode worker answers first, but only the sender knows how much it sent."""
    workers, done = started(1, 1), []
    front = frontend(workers, done)
    request = OpenRequest(Prompt(0, 0.0, (1, 2, 3), 5))
    front.submit(request)
    workers.fakes["p0"].work(workers.fakes, fails=False)
    front.step(0.0)
    assert request.attempt
    number, workers.fakes["p0"].sending = request.attempt.attempt_id, []
    front.cancel(0)
    workers.events.put(("d0", AttemptFailed(number, "the KV that arrived is damaged")))
    workers.events.put(("p0", AttemptFailed(number, "cancelled", BrokenTransfer("raw", 7, 1.0, 2.0, "none"))))
    while not workers.events.empty():
        front.step(0.0)
    assert [(transfer.outcome, transfer.wire_bytes, transfer.reason) for transfer in request.failed_transfers] == [
        ("failed", 7, "cancelled")
    ]
    assert not front._attempts.awaits("p0")


def test_a_request_whose_attempts_all_fail_reports_the_reason() -> None:
    workers, done = started(1, 1), []
    front = frontend(workers, done)
    workers.fakes["d0"].refused = set(range(100))
    front.submit(OpenRequest(Prompt(0, 0.0, (1,), 5)))
    finish(front, workers, 1, done)
    record = done[0].record
    assert record is not None
    assert (record.outcome, record.reason, len(done[0].failures)) == ("failed", "p0: the link is cut", TRIES)


def test_the_last_worker_of_a_role_cannot_change_it_but_can_die() -> None:
    workers = started(1, 2)
    front = frontend(workers, [])
    with pytest.raises(ValueError, match="worker p0 is the last one for prefill; start another one first"):
        front.change("p0", "decode")
    with pytest.raises(ValueError, match="there is no role 'both'; it must be one of prefill, decode"):
        front.change("d0", "both")
    front.change("d0", "prefill")
    with pytest.raises(ValueError, match="worker d1 is the last one for decode"):
        front.change("d1", GONE)
    workers.fakes["d1"].dead = True
    workers.events.put(("d1", None))
    front.step(0.0)  # d0 is ready for prefill
    with pytest.raises(WorkerDied, match="worker d1 ended"):
        front.step(0.0)


def test_a_quote_divides_the_bytes_of_the_pairs_policy_by_its_estimate_of_the_link() -> None:
    workers, done = started(1, 1), []
    front = frontend(workers, done)
    raw_bytes = 100 * LAYOUT.model.kv_bytes_per_token
    assert front.reservations.quote_s("p0", "d0", 100, 0.0, 0.0) == pytest.approx(raw_bytes / 1e6)
    front.reservations.promise(0, "p0", "d0", 50, 5, 0.0)
    assert front.reservations.quote_s("p0", "d0", 100, 0.0, 0.0) == pytest.approx(1.5 * raw_bytes / 1e6)
    assert math.isclose(front.reservations.prefill["p0"].queued_s, front.reservations.prefill["p0"].prefill_s(50))


def test_a_policy_of_roles_moves_a_worker_once_it_has_drained() -> None:
    """Prompts wait for the only prefill worker, while two decode workers have little to do."""
    workers, done = started(1, 2), []
    front = frontend(workers, done, roles={"of": "arrow.Arrow", "period_s": 1e-3, "ttft_slo_s": 0.1, "tpot_slo_s": 10.0})
    front.submit(OpenRequest(Prompt(0, 0.0, (1,) * 100, 9)))
    front.submit(OpenRequest(Prompt(1, 0.0, (2,) * 100, 9)))
    front.step(0.0)
    draining = [name for name, worker in workers.states.items() if worker.phase == "draining"]
    assert len(draining) == 1
    assert front.reservations.decode[draining[0]].promised  # it keeps its role until its requests are decoded
    finish(front, workers, 2, done)
    front.step(0.0)
    assert [t.tokens for t in done] == [answer(t.prompt) for t in done]
    assert [(name, role) for _, name, role in front.role_changes] == [(draining[0], ""), (draining[0], "prefill")]
    assert sorted(workers.serving("prefill")) == sorted(["p0", draining[0]])


def test_a_draining_worker_hands_over_the_prompts_that_it_has_not_begun() -> None:
    """Eight prompts are placed on p0 and p1 in turn. p0 has computed one of its four and is sending it; the other three go to p1."""
    workers, done = started(), []
    front = frontend(workers, done)
    for i in range(8):
        front.submit(OpenRequest(Prompt(i, 0.0, (i,) * 20, 5)))
    workers.fakes["p0"].work(workers.fakes, fails=False)
    front.step(0.0)
    front.change("p0", "decode")
    front.submit(OpenRequest(Prompt(8, 0.0, (8,) * 20, 5)))
    front.step(0.0)
    placed = [job.prompt.tokens[0] for job in workers.fakes["p1"].jobs]
    assert placed == [1, 3, 5, 7, 8, 2, 4, 6]  # the ninth prompt came before the worker had answered
    finish(front, workers, 9, done)
    assert sorted((t.record.request_id, t.record.prefill_node) for t in done if t.record)[0] == (0, "p0")
    assert {t.record.prefill_node for t in done if t.record and t.record.request_id} == {"p1"}
    assert all(t.tokens == answer(t.prompt) and not t.failures for t in done)
    front.step(0.0)
    assert workers.settled
    assert all(front.reservations.holds_nothing(name) for name in workers.states)


@pytest.mark.parametrize("of", ["colocated.Colocated", "conditional.Conditional", "load_aware.LoadAwareRoles"])
def test_a_policy_of_roles_that_needs_a_worker_to_do_both_is_refused(of: str) -> None:
    with pytest.raises(ValueError, match="which real workers cannot do; take static, arrow, or load_aware"):
        WorkerRoles({"_target_": f"abkt.policy.roles.{of}"})
    assert not WorkerRoles({"_target_": "abkt.policy.roles.static.Static"}).moves
    assert WorkerRoles({"_target_": "abkt.policy.roles.load_aware.LoadAwareRoles", "lend_cycles": False}).moves


def test_a_worker_that_does_not_start_is_replaced_a_few_times() -> None:
    """Its place is taken by another one; after three in a row the frontend gives up on the role, and says why."""
    workers, done = started(1, 2), []
    front = frontend(workers, done)
    front.terms = replace(front.terms, replace_dead=True)
    tried: list[str] = []

    def broken(name: str, role: str) -> None:
        tried.append(name)
        workers.states[name] = WorkerState(FakeWorker(name, lambda who, report: None, role), role)  # type: ignore[arg-type]
        workers.events.put((name, None))

    workers.start = broken  # type: ignore[method-assign]
    workers.events.put(("d1", None))
    for _ in range(20):
        front.step(0.0)
    assert len(tried) == STARTS
    assert workers.serving("decode") == ["d0"]  # the service goes on
    workers.events.put(("d0", None))
    with pytest.raises(WorkerDied):
        finish(front, workers, 1, done)

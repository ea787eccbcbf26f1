"""Refinement on a decode worker: the values in the pool at each iteration, the reported distortion, and the memory of the codes."""

from __future__ import annotations

import math
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.codec.stream import Stream
from abkt.kv.pool import Pool
from abkt.records import SLO
from abkt.serve.cluster import LocalCluster
from abkt.serve.commands import CancelAttempt, StartDecodeRun, WorkerConfig
from abkt.serve.reports import AttemptCancelled, AttemptFailed, AttemptFinished, WorkerReport
from abkt.serve.worker.control import Inbox
from abkt.serve.worker.decode import DecodeWorker
from abkt.serve.worker.equipment import Equipment, equip
from abkt.serve.worker.events import KVArrived, RefinementSettled, WorkerEvent
from abkt.serve.worker.raw import fingerprint
from abkt.serve.worker.refining import CodeMemory, KVQuality
from abkt.transfer.pieces import BufferSink
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.receive.received import Received
from abkt.transfer.send.outgoing import Outgoing
from abkt.transfer.send.sender import Sender
from abkt.transfer.transports.tcp import Tcp
from tests.serve.test_real_cluster import EMBEDDED, prompts

WAIT_S = 30.0
TOKENS = 200  # so decoded tokens share the last block
REFINING = {**EMBEDDED, "refine_distortion": 0.0, "target_distortion": 0.02, "mean_distortion": 0.05, "max_distortion": 0.08}


class ReportList:
    """Takes the place of a worker's Control."""

    def __init__(self) -> None:
        self.inbox: Inbox = queue.SimpleQueue()
        self.reports: list[WorkerReport] = []

    def say(self, report: WorkerReport) -> None:
        self.reports.append(report)


class SteppedWorker:
    """A decode worker whose main loop the test runs step by step, and a sender that sends to it."""

    def __init__(self, equipment: Equipment, config: WorkerConfig) -> None:
        self.equipment, self.control = equipment, ReportList()
        self.worker = DecodeWorker(config, self.control, equipment)
        self.worker._handle(StartDecodeRun(0.0, Capacity.constant(math.inf)))
        self.sender = Sender(Tcp(), self.worker.receiver.address, Hello("p0", fingerprint(equipment.engine.layout)))
        self.go = 0  # the cut that a stream may be refined to
        self.followed: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def iterate(self) -> None:
        """One iteration, and the requests that are done after it, as in the main loop."""
        self.worker._iterate()
        self.worker._report_done()

    def stream(self, tokens: int = TOKENS) -> Stream:
        engine = self.equipment.engine
        table = self.equipment.segments.allocate(engine.layout.blocks_for(tokens))
        engine.begin([(5 * i) % 2048 for i in range(tokens)], table)
        made = self.equipment.codec.encode(engine.pool, table, tokens)
        self.equipment.segments.free(table)
        return made

    def send(self, number: int, stream: Stream, start: int, osl: int) -> None:
        offer = Offer(number, "stream", stream.tokens, stream.ends, first_token=3, more={"osl": osl, "expected_bytes": 1.0})
        outgoing = Outgoing(
            number,
            offer,
            stream,
            next_cut=lambda *_: start,
            next_refinement_cut=lambda *_: self.go,
            on_refinement_end=self.followed.put,
        )
        sent = self.sender.submit(outgoing).result(WAIT_S)
        assert not sent.error
        assert sent.cut == start

    def handle(self, kind: type[WorkerEvent]) -> None:
        """Let the main loop handle the next event, which must be of this kind."""
        event = self.control.inbox.get(timeout=WAIT_S)
        assert isinstance(event, kind)
        self.worker._handle(event)

    def until(self, number: int, cut: int) -> None:
        """Wait until the codes up to this cut have arrived, without the main loop."""
        received = next(r.quality.received for r in self.worker.batch if r.attempt_id == number)
        assert received is not None
        self.go = cut
        while received.cut < cut:
            assert self.control.inbox.empty()

    def close(self) -> None:
        self.sender.close()
        self.worker.receiver.close()


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> WorkerConfig:
    return WorkerConfig("d0", "decode", str(tiny_model), blocks=80, block_tokens=16, max_batch=4)


@pytest.fixture(scope="module")
def equipment(config: WorkerConfig) -> Equipment:
    return equip(config)


@pytest.fixture
def bench(equipment: Equipment, config: WorkerConfig) -> Iterator[SteppedWorker]:
    made = SteppedWorker(equipment, config)
    yield made
    made.close()
    for number in made.worker.memory.attempts:
        made.worker._release(number)
    assert equipment.segments.free_blocks == equipment.segments.blocks


def expansion(bench: SteppedWorker, stream: Stream, cut: int) -> torch.Tensor:
    """The values that a prefix of a stream expands to: [layers, kinds, heads, tokens, dim]."""
    layout = bench.equipment.engine.layout
    pool, table = Pool(layout), list(range(layout.blocks_for(stream.tokens)))
    bench.equipment.codec.expand(stream.prefix(cut), pool, table)
    return prompt_of(pool, table, stream.tokens)


def prompt_of(pool: Pool, table: list[int], tokens: int) -> torch.Tensor:
    layers = pool.layout.model.layers
    return torch.stack([torch.stack(pool.read(table, layer, tokens)) for layer in range(layers)])


def test_a_longer_prefix_is_written_between_iterations_and_leaves_decoded_kv_unchanged(bench: SteppedWorker) -> None:
    stream = bench.stream()
    finest = len(stream.ends) - 1
    cuts = [2, finest // 2, finest]
    bench.send(1, stream, cuts[0], osl=9)
    bench.handle(KVArrived)
    worker, pool = bench.worker, bench.equipment.engine.pool
    worker._join(worker.arrived.popleft())
    (running,) = worker.batch

    def holds(cut: int) -> bool:
        return torch.equal(prompt_of(pool, running.table, TOKENS), expansion(bench, stream, cut))

    assert holds(cuts[0])
    bench.iterate()
    bench.iterate()
    bench.until(1, cuts[1])
    assert holds(cuts[0])  # not before the boundary
    decoded = prompt_of(pool, running.table, TOKENS + 2)[..., TOKENS:, :]
    assert decoded.abs().sum() > 0
    worker._swap()
    assert holds(cuts[1])
    assert torch.equal(prompt_of(pool, running.table, TOKENS + 2)[..., TOKENS:, :], decoded)
    bench.iterate()
    bench.go = finest
    bench.handle(RefinementSettled)  # the last values are swapped in, and the codes are freed
    assert holds(finest)
    assert worker.memory.codes.held_bytes == 0
    assert not running.quality.better
    for _ in range(5):
        worker._swap()
        bench.iterate()
    (done,) = [report for report in bench.control.reports if isinstance(report, AttemptFinished)]
    left = stream.curve.distortion
    swaps = done.swaps
    assert swaps[0][1:] == (2, cuts[1])
    assert (swaps[-1][1], swaps[-1][2]) == (3, finest)
    assert done.distortion_start == pytest.approx(left[cuts[0]], rel=1e-6)
    assert done.distortion_final == pytest.approx(left[finest], rel=1e-6)
    by_token = (2 * left[cuts[0]] + 1 * left[cuts[1]] + 5 * left[finest]) / 8
    assert done.distortion_token_weighted == pytest.approx(by_token, rel=1e-6)
    assert done.refine_bytes >= stream.ends[finest] - stream.ends[cuts[0]]
    assert swaps[-1][0] >= done.refine_finish_s > done.received_s
    assert bench.followed.get(timeout=WAIT_S).reason == ""


def test_a_finished_request_frees_its_codes_and_receives_no_more(bench: SteppedWorker) -> None:
    stream = bench.stream()
    bench.send(1, stream, 2, osl=3)
    bench.handle(KVArrived)
    bench.worker._join(bench.worker.arrived.popleft())
    assert bench.worker.memory.codes.held_bytes == stream.ends[-1]
    bench.iterate()
    bench.iterate()
    assert not bench.worker.batch
    assert bench.followed.get(timeout=WAIT_S).reason == ""
    bench.handle(RefinementSettled)
    assert bench.worker.memory.codes.held_bytes == 0


@pytest.mark.parametrize("when", ["arrived", "running"])
def test_a_cancelled_request_frees_its_codes(bench: SteppedWorker, when: str) -> None:
    bench.send(1, bench.stream(), 2, osl=9)
    bench.handle(KVArrived)
    if when == "running":
        bench.worker._join(bench.worker.arrived.popleft())
    bench.worker._handle(CancelAttempt(1))
    bench.handle(RefinementSettled)
    assert bench.worker.memory.codes.held_bytes == 0
    assert bench.control.reports[-1] == AttemptCancelled(1)


def test_a_new_transfer_gets_the_memory_of_refinements(bench: SteppedWorker) -> None:
    stream = bench.stream()
    bench.worker.memory.codes.capacity_bytes = int(2.5 * stream.ends[-1])
    for number in (1, 2):
        bench.send(number, stream, 2, osl=9)
        bench.handle(KVArrived)
        bench.worker._join(bench.worker.arrived.popleft())
    first, second = (running.quality for running in bench.worker.batch)
    assert first.received is not None
    assert not first.received.declined  # one more transfer of its size would fit
    assert second.received is not None
    assert second.received.declined  # no further one fits
    bench.handle(RefinementSettled)
    with pytest.raises(TimeoutError):  # the third fits only once the first is declined and settled
        bench.sender.submit(outgoing_of(bench, 3, stream)).result(0.0)
    bench.handle(KVArrived)
    assert bench.worker.memory.codes.held_bytes <= bench.worker.memory.codes.capacity_bytes


def test_a_damaged_stream_fails_only_its_own_request(bench: SteppedWorker, caplog: pytest.LogCaptureFixture) -> None:
    """Every frame is intact, but the bytes are not a stream of this codec. The peer is at fault, not the network."""
    free = bench.equipment.segments.can_allocate
    blocks = next(n for n in range(80, 0, -1) if free(n))
    for number, damaged in ((1, True), (2, False)):
        bench.send(number, bench.stream(), 2, osl=9)
        bench.handle(KVArrived)
        (received,) = bench.worker.arrived
        if damaged:
            received.sink.data[:64] = bytes(64)  # type: ignore[attr-defined]
        bench.worker._join(bench.worker.arrived.popleft())
        if damaged:
            bench.iterate()  # of an empty batch
            bench.handle(RefinementSettled)
    assert [running.attempt_id for running in bench.worker.batch] == [2]
    (failed,) = [report for report in bench.control.reports if isinstance(report, AttemptFailed)]
    assert failed.attempt_id == 1
    assert failed.reason.startswith("the KV that arrived is damaged: ")
    assert len(caplog.records) == 1
    bench.worker._handle(CancelAttempt(2))
    bench.handle(RefinementSettled)
    assert bench.worker.memory.codes.held_bytes == 0
    assert free(blocks)


def test_a_damaged_refinement_leaves_the_committed_values(bench: SteppedWorker) -> None:
    stream = bench.stream()
    bench.send(1, stream, 2, osl=9)
    bench.handle(KVArrived)
    bench.worker._join(bench.worker.arrived.popleft())
    (running,) = bench.worker.batch
    received, before = running.quality.received, bench.equipment.engine.pool.data.clone()
    bench.until(1, 20)
    received.sink.data[:64] = bytes(64)  # type: ignore[union-attr]
    bench.worker._swap()
    assert torch.equal(bench.equipment.engine.pool.data, before)
    assert running.quality.cut == 2
    assert not running.quality.better
    bench.handle(RefinementSettled)
    bench.worker._handle(CancelAttempt(1))
    assert bench.worker.memory.codes.held_bytes == 0


def outgoing_of(bench: SteppedWorker, number: int, stream: Stream) -> Outgoing:
    return Outgoing(number, Offer(number, "stream", stream.tokens, stream.ends, more={"osl": 3}), stream, next_cut=lambda *_: 2)


# In a cluster


def test_the_records_of_refined_requests_add_up(cluster: LocalCluster) -> None:
    """On this link most of a stream arrives while tokens are decoded."""
    given = prompts(lengths=(200, 300, 250), osl=200, gap_s=0.2)
    run = cluster.run(given, REFINING, Capacity.constant(1.2e6), SLO(ttft_s=0.3, tpot_s=1.0))
    assert [r.outcome for r in run.requests] == ["completed"] * 3
    refined = [t for t in run.transfers if t.refine_bytes]
    assert refined
    for t in run.transfers:
        r = next(r for r in run.requests if r.request_id == t.request_id)
        assert r.distortion_final == t.distortion_final
        assert r.distortion_final <= r.distortion_token_weighted <= r.distortion_start
        assert (t.distortion_final < t.distortion_start) <= (t.refine_bytes > 0)
        assert r.wire_bytes == t.wire_bytes >= t.refine_bytes
        assert math.isnan(t.refine_finish_s) == (t.refine_bytes == 0)
        assert not t.refine_finish_s <= t.finish_s
    assert any(t.distortion_final < t.distortion_start for t in refined)


# What is counted


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), max_size=8))
def test_token_weighted_distortion_is_the_mean_over_tokens(steps: list[tuple[int, float]]) -> None:
    quality, each, distortion = KVQuality(None, 0, 0.5), [], 0.5
    for cut, (tokens, better) in enumerate(steps):
        each += [distortion] * tokens
        for _ in range(tokens):
            quality.decoded()
        distortion *= better
        quality.swapped(0.0, cut, distortion)
    assert quality.token_weighted == pytest.approx(sum(each) / len(each) if each else distortion)
    assert (quality.start, quality.distortion, quality.tokens) == (0.5, distortion, len(each))


def received(number: int, size: int) -> Received:
    made = Received("p0", number, 0, Offer(number, "stream", 1, (size,)), BufferSink(size), 0.0, 0.0)
    made.refining = made.refinable = True
    return made


@given(st.lists(st.tuples(st.sampled_from(["hold", "keep", "free", "settle"]), st.integers(0, 5), st.integers(1, 60)), max_size=40))
def test_codes_stay_within_their_memory_and_the_oldest_refinement_ends_first(steps: list[tuple[str, int, int]]) -> None:
    codes, held, kept = CodeMemory(100), {}, {}
    for step, number, size in steps:
        match step:
            case "hold" if number not in held:
                fits = sum(held.values()) + size <= 100 or not held
                assert codes.hold(number, size) == fits
                if fits:
                    held[number] = size
                else:
                    declined = [kept[n].declined for n in kept]
                    assert declined == sorted(declined, reverse=True) or any(d for d in declined)
                    yielding = sum(held[n] for n in kept if kept[n].declined)
                    assert yielding >= min(sum(held[n] for n in kept), sum(held.values()) + size - 100)
            case "keep" if number in held and number not in kept:
                kept[number] = received(number, held[number])
                codes.keep(kept[number])
                assert kept[number].declined == (sum(held.values()) + held[number] > 100)
            case "free" | "settle" if number in held:
                codes.free(number)
                del held[number]
                kept.pop(number, None)
        assert codes.held_bytes == sum(held.values())
        assert codes.held_bytes <= 100 or len(held) == 1

"""Random faults at random bytes, over all transports. A transfer is committed with the right bytes or aborted; nothing leaks or hangs.

Every second transfer is refined. Each refined prefix must be right as well, and each refinement is settled once.
The default run has a few transfers; `-m slow` has 10,000, and ten million mutated frames.
"""

import random
import threading
import time

import pytest

from abkt.transfer.pieces import BufferSink
from abkt.transfer.protocol.channel import Keepalive
from abkt.transfer.protocol.frame import DATA_CAP_BYTES, HEADER_BYTES, FrameError, FrameHeader, FrameType, parse, seal
from abkt.transfer.protocol.messages import Abort, Ack, Commit, Grant, Hello, Offer
from tests.transfer.faulty import KINDS, Fault, Faulty, FaultyConnection

WAIT_S = 60.0
QUICK = Keepalive(ping_s=0.2, silence_s=3.0, greet_s=3.0, resume_s=2.0, hold_s=6.0)
MESSAGES = [Abort, Ack, Commit, Grant, Hello, Offer]


class Outcomes:
    """Every sink that was given out, and how it ended."""

    def __init__(self):
        self.lock = threading.Lock()
        self.given, self.committed, self.aborted = {}, {}, []
        self.data, self.wrong, self.refined = {}, [], 0
        self.settled, self.ended = [], []

    def on_refined(self, received, cut):
        end = received.offer.ends[cut]
        with self.lock:
            self.refined += 1
            if received.sink.data[:end] != self.data[received.transfer_id][:end]:
                self.wrong.append((received.transfer_id, cut))

    def sink_of(self, offer):
        sink = BufferSink(offer.size)
        with self.lock:
            self.given[id(sink)] = sink
        return sink


def run(endpoints, outgoing, seed, count, size_cap):
    """Run `count` transfers. Each has a fault on its first connection, and perhaps others while it is resumed."""
    dice, log, transport = random.Random(seed), Outcomes(), endpoints.transport
    receiver = endpoints.receiver(keepalive=QUICK, sink_of=log.sink_of, on_refined=log.on_refined, on_settled=log.settled.append)
    ends = {"committed": 0, "failed": 0}
    for number in range(count):
        data = log.data[number] = dice.randbytes(dice.randint(1, size_cap))
        faults = [fault(dice, len(data)) for _ in range(dice.randint(1, 3))]
        endpoints.transport = Faulty(transport, faults)
        sender = endpoints.sender(receiver.address, keepalive=QUICK)
        cuts = sorted({dice.randint(1, len(data)), dice.randint(1, len(data)), len(data)})
        refining = (
            {"next_cut": lambda *_: 0, "next_refinement_cut": lambda *_: 9, "on_refinement_end": log.ended.append} if number % 2 else {}
        )
        sent = sender.submit(outgoing(number, [data], ends=cuts, **refining)).result(WAIT_S)
        if sent.refining and dice.random() < 0.8:
            until_s = time.monotonic() + WAIT_S
            while not log.ended or log.ended[-1].transfer_id != number:
                assert time.monotonic() < until_s, "the refinement hangs"
                time.sleep(0.002)
        sender.close()
        endpoints.open.pop()
        given = f"seed {seed}, transfer {number}, {faults}"
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("send to")], given
        if sent.error:
            ends["failed"] += 1
            assert "\n" not in sent.error, given
        while not receiver.commits.empty() or (not sent.error and number not in log.committed):
            received = receiver.commits.get(timeout=WAIT_S)
            assert received.transfer_id not in log.committed, given
            log.committed[received.transfer_id] = received
            end = received.offer.ends[received.cut]
            assert received.sink.data[:end] == log.data[received.transfer_id][:end], given
            assert received.refinable or received.cut == len(received.offer.ends) - 1, given
        ends["committed"] += number in log.committed
    endpoints.close()  # ends the transfers that are kept for resuming
    while not receiver.aborts.empty():
        log.aborted.append(receiver.aborts.get()[0])
    while not receiver.commits.empty():
        received = receiver.commits.get()
        log.committed[received.transfer_id] = received
    assert not log.wrong, "a refined prefix was wrong"
    assert sorted(r.transfer_id for r in log.settled) == sorted(n for n, r in log.committed.items() if r.refinable), "settled once each"
    ends["refined"] = log.refined
    assert len({f.transfer_id for f in log.ended}) == len(log.ended)
    settled = [id(received.sink) for received in (*log.aborted, *log.committed.values())]
    assert len(settled) == len(set(settled)), "a sink was settled twice"
    assert set(settled) == set(log.given), "a sink leaked"
    return ends


def fault(dice, size):
    kind = dice.choice(KINDS)
    return Fault(kind, dice.randrange(size + 900), stall_s=dice.choice([0.001, 0.05]) if kind == "stall" else 0.0)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_fault_at_any_byte_commits_the_right_bytes_or_aborts(endpoints, outgoing, seed):
    """The default run has only a few transfers, because a truncated frame may be detected only at the silence limit."""
    ends = run(endpoints, outgoing, seed, 12, 200_000)
    assert ends["committed"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_ten_thousand_faults_commit_the_right_bytes_or_abort(endpoints, outgoing, seed):
    """20 seeds of 100 transfers in each case of endpoints.py."""
    ends = run(endpoints, outgoing, seed, 100, 400_000)
    assert ends["committed"]


def test_a_fault_in_what_the_receiver_sends_commits_the_right_bytes_or_aborts(endpoints, outgoing):
    """The fault is in a frame of the receiver: HELLO, GRANT or ACK."""
    dice = random.Random(4)
    listen = endpoints.transport.listen
    for number in range(3):
        at = dice.randrange(700)
        made = []

        def broken(*where, at=at, made=made, **how):
            listener = listen(*where, **how)
            accept = listener.accept

            def faulty(timeout_s):
                connection = accept(timeout_s)
                if connection and not made:
                    made.append(connection)
                    return FaultyConnection(connection, Fault("break", at))
                return connection

            listener.accept = faulty
            return listener

        endpoints.transport.listen = broken
        receiver = endpoints.receiver(keepalive=QUICK)
        endpoints.transport.listen = listen
        data = dice.randbytes(100_000)
        sent = endpoints.sender(receiver.address, keepalive=QUICK).submit(outgoing(number, [data])).result(WAIT_S)
        if not sent.error:
            assert receiver.committed().sink.data == data
        endpoints.close()
        assert receiver.commits.empty()


# The parser


def mutants(dice):
    """Frames of every type with a few bytes changed, and random bytes."""
    kinds = list(FrameType)
    while True:
        kind = dice.choice(kinds)
        length = dice.choice([0, 1, 8, 32, 300, DATA_CAP_BYTES])
        frame = bytearray(seal(FrameHeader(kind, dice.getrandbits(64), dice.getrandbits(8), dice.getrandbits(40), 0, length)))
        yield bytes(frame)
        for _ in range(30):
            for _ in range(dice.randint(1, 3)):
                frame[dice.randrange(HEADER_BYTES)] = dice.choice([0, 1, 255, dice.randrange(256)])
            yield bytes(frame)
        yield dice.randbytes(dice.choice([0, 63, 64, 64, 65]))


def fuzz(count, seed):
    dice, parsed = random.Random(seed), 0
    for _, data in zip(range(count), mutants(dice), strict=False):
        try:
            header = parse(data)
        except FrameError:
            continue
        parsed += 1
        assert 0 <= header.length <= DATA_CAP_BYTES
        assert header.untagged() + header.tag == data
    return parsed


def fuzz_messages(count, seed):
    """Payloads of valid messages with bytes changed, removed or repeated."""
    dice, parsed = random.Random(seed), 0
    good = [
        Hello("a", "b", "0a" * 16, "keyed", "1b" * 32).payload(),
        Offer(1, "stream", 40, (10, 20), 3, (2, 1), {"osl": 8}).payload(),
        Grant(100, 50, 1, False, 0.5).payload(),
        Ack(1.0).payload(),
        Commit(1, 20, "00" * 16).payload(),
        Abort("why").payload(),
    ]
    for _ in range(count):
        payload = bytearray(dice.choice(good))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(payload) or 1)
            match dice.randrange(3):
                case 0:
                    payload[at : at + 1] = bytes([dice.choice(b'0123456789-.eE{}[]",:tfn\\\x00\xff')])
                case 1:
                    del payload[at : at + dice.randint(1, 9)]
                case 2:
                    payload[at:at] = payload[at : at + dice.randint(1, 9)]
        kind = dice.choice(MESSAGES)
        try:
            message = kind.parse(bytes(payload))
        except FrameError:
            continue
        parsed += 1
        assert kind.parse(message.payload()) == message
    return parsed


def test_mutated_frames_are_parsed_or_refused():
    assert fuzz(30_000, 1) > 100
    assert fuzz_messages(10_000, 1) > 50


@pytest.mark.slow
def test_ten_million_mutated_frames_take_bounded_memory():
    import resource

    fuzz(100_000, 2)
    fuzz_messages(100_000, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(8):
        fuzz(1_000_000, 10 + seed)
    for seed in range(2):
        fuzz_messages(1_000_000, 30 + seed)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 << 10

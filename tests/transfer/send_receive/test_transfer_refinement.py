"""Refinement of committed transfers, over all transports: every commit is a correct longer prefix, and new transfers go first."""

import os
import queue
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.transfer.link import PacedLink
from abkt.transfer.pieces import BufferSink
from abkt.transfer.protocol.channel import Keepalive
from abkt.transfer.protocol.frame import COMMITTED, HEADER_BYTES, MORE, FrameHeader, FrameType, digest_of
from abkt.transfer.protocol.messages import Abort, Commit, Grant, Offer
from abkt.transfer.send.outgoing import FRAME_BYTES
from abkt.transfer.transport import PeerError, Refused
from tests.transfer.faulty import Fault, Faulty

WAIT_S = 30.0
LASTING = Keepalive(ping_s=0.1, silence_s=20.0, greet_s=20.0, resume_s=20.0, hold_s=20.0)
BRIEF = Keepalive(ping_s=0.1, silence_s=20.0, greet_s=20.0, resume_s=0.0, hold_s=0.3)
FRAME = FRAME_BYTES[0]
ENDS = tuple(FRAME * band for band in range(1, 11))
FINEST = len(ENDS) - 1
DATA, COMMIT, OFFER, ACK, GRANT, ABORT = (FrameType[name] for name in ("DATA", "COMMIT", "OFFER", "ACK", "GRANT", "ABORT"))


class RefinementLog:
    """Records the refinement callbacks of both sides, and checks every refined prefix against the data."""

    def __init__(self):
        self.refined, self.settled, self.ended = queue.Queue(), queue.Queue(), queue.Queue()
        self.data = {}

    def receiver(self, endpoints, **options):
        options = {"keepalive": LASTING, "on_refined": self._refined, "on_settled": self.settled.put} | options
        return endpoints.receiver(**options)

    def outgoing(self, outgoing, number, start=1, refine=lambda now_s, sent_bytes, sent_cut: FINEST, ends=ENDS, **options):
        self.data[number] = os.urandom(ends[-1])
        return outgoing(
            number,
            [self.data[number]],
            ends,
            next_cut=lambda *_: start,
            next_refinement_cut=refine,
            on_refinement_end=self.ended.put,
            **options,
        )

    def holds(self, received, cut):
        """Whether the sink holds the right bytes up to this cut."""
        end = received.offer.ends[cut]
        return received.sink.data[:end] == self.data[received.transfer_id][:end]

    def _refined(self, received, cut):
        assert received.cut == cut
        self.refined.put((received, cut, self.holds(received, cut)))


def drained(of):
    found = []
    while not of.empty():
        found.append(of.get())
    return found


def test_refinement_completes_the_transfer_and_each_commit_is_a_longer_prefix(endpoints, outgoing):
    log = RefinementLog()
    receiver = log.receiver(endpoints)
    sent = endpoints.sender(receiver.address, keepalive=LASTING).submit(log.outgoing(outgoing, 5)).result(WAIT_S)
    assert (sent.cut, sent.payload_bytes, sent.refining) == (1, ENDS[1], True)
    received = receiver.committed()
    assert received.refinable
    assert log.holds(received, 1)
    result = log.ended.get(timeout=WAIT_S)
    assert (result.transfer_id, result.cut, result.reason) == (5, FINEST, "")
    rest = ENDS[-1] - ENDS[1]
    assert rest < result.wire_bytes < rest + 40 * HEADER_BYTES + 2000
    assert result.finish_s >= sent.acked_s
    assert log.settled.get(timeout=WAIT_S) is received
    assert all(right for _, _, right in drained(log.refined))
    assert received.sink.data == log.data[5]
    assert (received.cut, received.refining) == (FINEST, False)
    assert received.refined_s >= received.committed_s
    assert receiver.commits.empty()
    assert receiver.aborts.empty()


@pytest.mark.parametrize("refine", [None, lambda *_: FINEST])
def test_a_complete_transfer_or_one_without_callback_is_not_refined(endpoints, outgoing, refine):
    log = RefinementLog()
    receiver = log.receiver(endpoints)
    start = 1 if refine is None else FINEST
    sent = endpoints.sender(receiver.address, keepalive=LASTING).submit(log.outgoing(outgoing, 1, start, refine)).result(WAIT_S)
    assert not sent.refining
    assert not receiver.committed().refinable
    endpoints.close()
    assert log.refined.empty()
    assert log.settled.empty()
    assert log.ended.empty()


@given(
    st.lists(st.integers(1, 150_000), min_size=2, max_size=6).map(lambda bands: tuple(sum(bands[: i + 1]) for i in range(len(bands)))),
    st.lists(st.integers(-1, 9), min_size=1, max_size=8),
    st.integers(0, 5),
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bands_and_refinement_cuts_deliver_exactly_a_prefix(endpoints, outgoing, ends, answers, start):
    """The callback returns the answers one by one and repeats the last one; the receiver then ends the refinement."""
    log, asked, all_asked = RefinementLog(), [], threading.Event()
    receiver = log.receiver(endpoints)

    def refine(now_s, sent_bytes, sent_cut):
        asked.append((sent_bytes, sent_cut))
        if len(asked) > len(answers):
            all_asked.set()
        return answers[min(len(asked), len(answers)) - 1]

    sent = endpoints.sender(receiver.address, keepalive=LASTING).submit(log.outgoing(outgoing, 1, start, refine, ends)).result(WAIT_S)
    received = receiver.committed()
    first = sent.cut
    assert log.holds(received, first)
    if sent.refining:
        while not all_asked.wait(0.01) and log.ended.empty():
            pass
        received.decline()
        result = log.ended.get(timeout=WAIT_S)
        assert log.settled.get(timeout=WAIT_S) is received
        cuts = [cut for _, cut, _ in list(log.refined.queue)]
        assert cuts == sorted(cuts)
        assert all(right for _, _, right in drained(log.refined))
        assert received.cut >= result.cut >= first
        assert log.holds(received, received.cut)
        most = max(first, *(min(answer, len(ends) - 1) for answer in answers))
        assert received.payload_bytes <= max(sent.payload_bytes, ends[most])
    endpoints.close()
    assert receiver.aborts.empty()


def test_a_new_transfer_goes_first_after_a_commit_of_the_complete_bands(endpoints, outgoing):
    """Three transfers refine, the newest first, and an urgent one is sent between two frames. The callback blocks the sender until the next
    transfer is submitted, so that it has some refinement to overtake."""
    log = RefinementLog()
    receiver = log.receiver(endpoints)
    sender = endpoints.sender(receiver.address, PacedLink(Capacity.constant(3e6)), keepalive=LASTING)
    order, asking, submitted = [], [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    def refine(number):
        def ask(now_s, sent_bytes, sent_cut):
            order.append((number, sent_bytes))
            turn = 0 if (2, ENDS[3]) in order and not asking[0].is_set() else 1 if "urgent" in order and not asking[1].is_set() else None
            if turn is not None:
                asking[turn].set()
                assert submitted[turn].wait(WAIT_S)
            return FINEST

        return ask

    for number in (1, 2):
        assert sender.submit(log.outgoing(outgoing, number, refine=refine(number))).result(WAIT_S).refining
    assert asking[0].wait(WAIT_S)
    urgent = sender.submit(outgoing(9, [b"u" * 3 * FRAME], on_sent=lambda *_: order.append("urgent")))
    submitted[0].set()
    assert not urgent.result(WAIT_S).error
    assert asking[1].wait(WAIT_S)
    third = sender.submit(log.outgoing(outgoing, 3, refine=refine(3)))
    submitted[1].set()
    assert third.result(WAIT_S).refining
    first = order.index("urgent")
    assert order[first - 1] == (2, ENDS[3])  # the frame decided before the submission is the last one before it
    assert order[first : first + order.count("urgent")] == ["urgent"] * order.count("urgent")  # no refinement between its frames
    ended = [log.ended.get(timeout=WAIT_S).transfer_id for _ in range(3)]
    assert ended == [3, 2, 1]  # the newest transfer has the most tokens left to decode
    assert {received.transfer_id for received in drained(receiver.commits)} == {1, 2, 3, 9}
    assert len([log.settled.get(timeout=WAIT_S) for _ in range(3)]) == 3
    refined = drained(log.refined)
    assert all(right for _, _, right in refined)
    assert next(cut for received, cut, _ in refined if received.transfer_id == 2) == 4  # complete when it was interrupted


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_receiver_can_decline_refinement_and_the_connection_goes_on(endpoints, outgoing, when):
    log = RefinementLog()
    receiver = log.receiver(endpoints) if when == "later" else log.receiver(endpoints, on_refined=None)
    sender = endpoints.sender(receiver.address, PacedLink(Capacity.constant(2e6)), keepalive=LASTING)
    for _ in range(2):  # the id can be used again
        assert sender.submit(log.outgoing(outgoing, 7)).result(WAIT_S).refining
        received = receiver.committed()
        if when == "later":
            while received.frames < 4:
                time.sleep(0.001)
            received.decline()
        result = log.ended.get(timeout=WAIT_S)
        assert result.reason == ""
        assert result.cut < FINEST
        assert log.settled.get(timeout=WAIT_S) is received
        held = bytes(received.sink.data)
        assert log.holds(received, received.cut)
        assert not sender.submit(outgoing(8, [b"next"])).result(WAIT_S).error
        assert receiver.committed().sink.data == b"next"
        assert received.sink.data == held  # it is not written any more
    assert sender._channel is not None
    assert drained(log.settled) == drained(log.ended) == drained(receiver.aborts) == []


def test_a_new_transfer_with_the_same_id_ends_the_refinement_of_the_first(endpoints, outgoing):
    log = RefinementLog()
    receiver = log.receiver(endpoints)
    sender = endpoints.sender(receiver.address, PacedLink(Capacity.constant(3e6)), keepalive=LASTING)
    sender.submit(log.outgoing(outgoing, 7)).result(WAIT_S)
    first, data = receiver.committed(), log.data[7]
    assert not sender.submit(log.outgoing(outgoing, 7)).result(WAIT_S).error
    assert log.settled.get(timeout=WAIT_S) is first
    assert first.sink.data[: ENDS[first.cut]] == data[: ENDS[first.cut]]
    second = receiver.committed()
    assert log.settled.get(timeout=WAIT_S) is second
    assert log.holds(second, FINEST)
    assert [log.ended.get(timeout=WAIT_S).cut for _ in range(2)] == [first.cut, FINEST]


# Broken connections


@pytest.mark.parametrize("at", [2.5, 4, 6.9])
def test_after_a_break_only_missing_bytes_of_the_refinement_are_sent(endpoints, outgoing, at):
    log = RefinementLog()
    receiver = log.receiver(endpoints)
    endpoints.transport = Faulty(endpoints.transport, [Fault("break", int(at * FRAME))])
    sent = (
        endpoints.sender(receiver.address, PacedLink(Capacity.constant(2e7)), keepalive=LASTING)
        .submit(log.outgoing(outgoing, 1))
        .result(WAIT_S)
    )
    assert (sent.resumes, sent.refining) == (0, True)
    received = receiver.committed()
    result = log.ended.get(timeout=WAIT_S)
    assert (result.cut, result.reason) == (FINEST, "")
    assert result.wire_bytes < ENDS[-1] - ENDS[1] + 3 * FRAME
    assert log.settled.get(timeout=WAIT_S) is received
    assert received.epoch == 1
    assert received.sink.data == log.data[1]
    assert all(right for _, _, right in drained(log.refined))


def test_refinement_that_cannot_be_resumed_ends_and_the_transfer_stays_valid(endpoints, outgoing):
    log = RefinementLog()
    receiver = log.receiver(endpoints, keepalive=BRIEF)
    sender = endpoints.sender(receiver.address, PacedLink(Capacity.constant(1e6)), keepalive=BRIEF)
    sender.submit(log.outgoing(outgoing, 1)).result(WAIT_S)
    received = receiver.committed()

    class Gone:
        def connect(self, *where, **how):
            raise PeerError("nobody is there any more")

    sender._transport = Gone()
    sender._channel.connection.abort()
    result = log.ended.get(timeout=WAIT_S)
    assert "nobody is there" in result.reason
    assert log.settled.get(timeout=WAIT_S) is received
    assert log.holds(received, received.cut)
    assert receiver.aborts.empty()


def test_refinement_that_breaks_again_without_progress_is_given_up(endpoints, outgoing):
    """The first connection lasts until the first commit; each later one breaks in its first frame of refinement."""
    log = RefinementLog()
    receiver = log.receiver(endpoints, keepalive=BRIEF)
    endpoints.transport = Faulty(endpoints.transport, [Fault("break", int(2.5 * FRAME)), *[Fault("break", 20_000)] * 40])
    endpoints.sender(receiver.address, keepalive=BRIEF).submit(log.outgoing(outgoing, 1)).result(WAIT_S)
    received = receiver.committed()
    assert log.ended.get(timeout=WAIT_S).reason
    assert endpoints.transport.connections <= 4
    assert log.settled.get(timeout=WAIT_S) is received
    assert log.holds(received, received.cut)


@pytest.mark.parametrize("how", ["sender", "receiver", "cancel"])
def test_closing_either_side_or_cancelling_settles_the_refinement(endpoints, outgoing, how):
    log = RefinementLog()
    receiver = log.receiver(endpoints)
    sender = endpoints.sender(receiver.address, PacedLink(Capacity.constant(1e6)), keepalive=BRIEF)
    offered = log.outgoing(outgoing, 1)
    sender.submit(offered).result(WAIT_S)
    received = receiver.committed()
    begun_s = time.monotonic()
    match how:
        case "sender":
            sender.close()
        case "receiver":
            endpoints.open.remove(receiver.close)
            receiver.close()
        case "cancel":
            offered.cancel.set()
    assert log.settled.get(timeout=WAIT_S) is received
    assert (log.ended.get(timeout=WAIT_S).reason == "") == (how == "cancel")
    assert time.monotonic() - begun_s < LASTING.hold_s / 2  # at once, not when its lease is over
    assert log.holds(received, received.cut)
    endpoints.close()
    assert drained(log.settled) == drained(log.ended) == drained(receiver.aborts) == []


# Peers that send frames that no Sender would send


def started(endpoints, receiver, instance="0a" * 16):
    """A peer whose transfer is committed with 50 of 150 bytes, and can be refined."""
    channel = endpoints.channel(receiver.address, instance=instance)
    offer(channel)
    tags = [data(channel, 0)]
    commit(channel, tags, 0)
    return channel, tags


def offer(channel, epoch=0, serial=0, transfer_id=1):
    channel.send(FrameHeader(OFFER, transfer_id, serial, epoch=epoch), [Offer(1, "stream", 1, (50, 100, 150)).payload()])
    return Grant.parse(channel.expect(GRANT)[1])


def data(channel, sequence, epoch=0, size=50):
    return channel.send(FrameHeader(DATA, 1, sequence, 50 * sequence, epoch), [b"d" * size])[1]


def commit(channel, tags, cut, flags=MORE, epoch=0):
    message = Commit(cut, 50 * len(tags), digest_of(tags).hex())
    channel.send(FrameHeader(COMMIT, 1, len(tags), epoch=epoch, flags=flags), [message.payload()])
    while not (header := channel.expect(ACK)[0]).flags & COMMITTED:
        pass
    assert header.offset == 50 * len(tags)


def test_the_hand_driven_peer_of_these_tests_can_refine(endpoints):
    log = RefinementLog()
    log.data[1] = b"d" * 150
    receiver = log.receiver(endpoints)
    channel, tags = started(endpoints, receiver)
    received = receiver.committed()
    tags.append(data(channel, 1))
    commit(channel, tags, 1)
    commit(channel, tags, 1, flags=0)  # ends the refinement
    assert [(cut, right) for _, cut, right in drained(log.refined)] == [(1, True), (1, True)]
    assert log.settled.get(timeout=WAIT_S) is received


def test_a_lost_acknowledgement_of_a_commit_is_sent_again(endpoints):
    log = RefinementLog()
    receiver = log.receiver(endpoints)
    log.data[1] = b"d" * 150
    channel, tags = started(endpoints, receiver)
    channel.connection.abort()
    channel = endpoints.channel(receiver.address, instance="0a" * 16)
    assert offer(channel, epoch=1) == Grant(150, held=50, frames=1, committed=True, refining=True)
    tags.append(data(channel, 1, epoch=1))
    commit(channel, tags, 1, flags=0, epoch=1)
    channel.connection.abort()
    channel = endpoints.channel(receiver.address, instance="0a" * 16)
    assert offer(channel, epoch=2) == Grant(150, held=100, frames=2, committed=True)
    assert receiver.committed().sink.data == b"d" * 100 + bytes(50)
    assert receiver.commits.empty()


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda channel, tags: data(channel, 2), "frame 2"),
        (lambda channel, tags: data(channel, 1, epoch=1), "not granted"),
        (lambda channel, tags: data(channel, 1, size=101), "were granted"),
        (lambda channel, tags: commit(channel, [*tags, b"x" * 16], 1), "COMMIT"),
        (lambda channel, tags: offer(channel, serial=1), "being refined"),
        (
            lambda channel, tags: channel.send(FrameHeader(ABORT, 99), [Abort("unknown transfer").payload()]),
            "",
        ),  # ends it without a log
    ],
)
def test_a_protocol_violation_ends_the_connection_and_keeps_the_committed_bytes(endpoints, outgoing, wrong, complaint, caplog):
    log = RefinementLog()
    log.data[1] = b"d" * 150
    receiver = log.receiver(endpoints)
    channel, tags = started(endpoints, receiver)
    received = receiver.committed()
    with pytest.raises(PeerError):
        until_the_end(channel, lambda: wrong(channel, tags))
    assert log.settled.get(timeout=WAIT_S) is received
    assert log.holds(received, 0)
    assert received.sink.data == b"d" * 50 + bytes(100)
    assert complaint in caplog.text
    assert not endpoints.sender(receiver.address, keepalive=LASTING).submit(outgoing(2, [b"others"])).result(WAIT_S).error


def until_the_end(channel, send):
    send()
    while True:
        channel.expect(ACK)


def test_frames_sent_before_the_decline_arrived_are_discarded(endpoints):
    log = RefinementLog()
    receiver = log.receiver(endpoints)
    channel, _ = started(endpoints, receiver)
    received = receiver.committed()
    received.decline()
    assert log.settled.get(timeout=WAIT_S) is received
    data(channel, 1)
    with pytest.raises(Refused, match="no further refinement"):
        channel.expect(GRANT)
    channel.send(FrameHeader(ABORT, 1), [Abort("the refinement has ended").payload()])
    assert offer(channel, serial=1) == Grant(150)  # a new transfer with the same id
    assert received.sink.data == b"d" * 50 + bytes(100)


def test_one_connection_refines_a_limited_number_of_transfers(endpoints):
    from abkt.transfer.receive.session import MOST_REFINING

    log = RefinementLog()
    receiver = log.receiver(endpoints)
    channel = endpoints.channel(receiver.address, instance="0a" * 16)
    for number in range(MOST_REFINING + 3):
        channel.send(FrameHeader(OFFER, number, number), [Offer(1, "stream", 1, (50, 100, 150)).payload()])
        tag = channel.send(FrameHeader(DATA, number, 0, 0), [b"d" * 50])[1]
        channel.send(FrameHeader(COMMIT, number, 1, flags=MORE), [Commit(0, 50, digest_of([tag]).hex()).payload()])
        while (header := channel.header()).type is not ACK or not header.flags:
            channel.message(header)
        channel.message(header)
    assert [log.settled.get(timeout=WAIT_S).transfer_id for _ in range(3)] == [0, 1, 2]
    assert log.settled.empty()


def test_refinement_ends_if_the_receiver_has_forgotten_the_transfer(endpoints, outgoing):
    log = RefinementLog()
    listener = endpoints.listener()
    sender = endpoints.sender(listener.address, keepalive=BRIEF)
    future = sender.submit(log.outgoing(outgoing, 1))
    for turn in range(2):
        channel = endpoints.accepted(listener)
        header, _ = channel.expect(OFFER)
        assert header.epoch == turn
        channel.send(FrameHeader(GRANT, 1, epoch=turn), [Grant(ENDS[-1]).payload()])
        if turn == 0:
            while (header := channel.header()).type is not COMMIT:
                channel.payload(header, [memoryview(bytearray(header.length))])
            size = Commit.parse(channel.message(header)).size
            assert header.flags == MORE
            channel.send(FrameHeader(ACK, 1, offset=size, flags=COMMITTED), [bytes(8)])
            assert future.result(WAIT_S).refining
        channel.connection.abort()
    assert "forgotten" in log.ended.get(timeout=WAIT_S).reason


def test_a_grant_of_only_the_first_cut_leaves_nothing_to_refine(endpoints, outgoing):
    log = RefinementLog()
    receiver = log.receiver(endpoints, sink_of=lambda offer: BufferSink(ENDS[1]))
    sent = endpoints.sender(receiver.address, keepalive=LASTING).submit(log.outgoing(outgoing, 1)).result(WAIT_S)
    assert not sent.refining
    assert not receiver.committed().refinable

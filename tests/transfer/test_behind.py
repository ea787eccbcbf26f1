"""What follows a transfer behind its start, over all transports: better values or none, never wrong ones, and the urgent first."""

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


class Log:
    """What a desk hears of refinement, and what a sender does; and the law that holds for each piece of it."""

    def __init__(self):
        self.refined, self.settled, self.followed = queue.Queue(), queue.Queue(), queue.Queue()
        self.data = {}

    def desk(self, house, **options):
        options = {"keepalive": LASTING, "on_refined": self._refined, "on_settled": self.settled.put} | options
        return house.desk(**options)

    def outgoing(self, outgoing, number, start=1, behind=lambda now_s, sent_bytes, sent_cut: FINEST, ends=ENDS, **options):
        self.data[number] = os.urandom(ends[-1])
        return outgoing(
            number, [self.data[number]], ends, next_cut=lambda *_: start, next_behind=behind, on_followed=self.followed.put, **options
        )

    def holds(self, received, cut):
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


def test_better_values_follow_and_each_promise_is_a_longer_prefix(house, outgoing):
    log = Log()
    desk = log.desk(house)
    sent = house.sender(desk.address, keepalive=LASTING).submit(log.outgoing(outgoing, 5)).result(WAIT_S)
    assert (sent.cut, sent.payload_bytes, sent.refining) == (1, ENDS[1], True)
    received = desk.committed()
    assert received.refinable
    assert log.holds(received, 1)
    followed = log.followed.get(timeout=WAIT_S)
    assert (followed.transfer_id, followed.cut, followed.reason) == (5, FINEST, "")
    rest = ENDS[-1] - ENDS[1]
    assert rest < followed.wire_bytes < rest + 40 * HEADER_BYTES + 2000
    assert followed.finish_s >= sent.acked_s
    assert log.settled.get(timeout=WAIT_S) is received
    assert all(right for _, _, right in drained(log.refined))
    assert received.sink.data == log.data[5]
    assert (received.cut, received.refining) == (FINEST, False)
    assert received.refined_s >= received.committed_s
    assert desk.commits.empty()
    assert desk.aborts.empty()


@pytest.mark.parametrize("behind", [None, lambda *_: FINEST])
def test_nothing_follows_what_is_complete_or_has_nobody_to_ask(house, outgoing, behind):
    log = Log()
    desk = log.desk(house)
    start = 1 if behind is None else FINEST
    sent = house.sender(desk.address, keepalive=LASTING).submit(log.outgoing(outgoing, 1, start, behind)).result(WAIT_S)
    assert not sent.refining
    assert not desk.committed().refinable
    house.close()
    assert log.refined.empty()
    assert log.settled.empty()
    assert log.followed.empty()


@given(
    st.lists(st.integers(1, 150_000), min_size=2, max_size=6).map(lambda bands: tuple(sum(bands[: i + 1]) for i in range(len(bands)))),
    st.lists(st.integers(-1, 9), min_size=1, max_size=8),
    st.integers(0, 5),
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bands_and_any_answers_behind(house, outgoing, ends, answers, start):
    """The answers come one by one, the last one for ever; the receiver ends it where the sender has no more to say."""
    log, asked, said_all = Log(), [], threading.Event()
    desk = log.desk(house)

    def behind(now_s, sent_bytes, sent_cut):
        asked.append((sent_bytes, sent_cut))
        if len(asked) > len(answers):
            said_all.set()
        return answers[min(len(asked), len(answers)) - 1]

    sent = house.sender(desk.address, keepalive=LASTING).submit(log.outgoing(outgoing, 1, start, behind, ends)).result(WAIT_S)
    received = desk.committed()
    first = sent.cut
    assert log.holds(received, first)
    if sent.refining:
        while not said_all.wait(0.01) and log.followed.empty():
            pass
        received.decline()
        followed = log.followed.get(timeout=WAIT_S)
        assert log.settled.get(timeout=WAIT_S) is received
        promised = [cut for _, cut, _ in list(log.refined.queue)]
        assert promised == sorted(promised)
        assert all(right for _, _, right in drained(log.refined))
        assert received.cut >= followed.cut >= first
        assert log.holds(received, received.cut)
        most = max(first, *(min(answer, len(ends) - 1) for answer in answers))
        assert received.payload_bytes <= max(sent.payload_bytes, ends[most])
    house.close()
    assert desk.aborts.empty()


def test_a_new_transfer_goes_first_and_what_was_whole_is_promised_before(house, outgoing):
    """Three refine, each newer one before the older, and an urgent one passes between two frames. The sender is held up in a question
    while the next transfer is submitted, so that there is something left for it to pass."""
    log = Log()
    desk = log.desk(house)
    sender = house.sender(desk.address, PacedLink(Capacity.constant(3e6)), keepalive=LASTING)
    order, asking, submitted = [], [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    def behind(number):
        def ask(now_s, sent_bytes, sent_cut):
            order.append((number, sent_bytes))
            turn = 0 if (2, ENDS[3]) in order and not asking[0].is_set() else 1 if "urgent" in order and not asking[1].is_set() else None
            if turn is not None:
                asking[turn].set()
                assert submitted[turn].wait(WAIT_S)
            return FINEST

        return ask

    for number in (1, 2):
        assert sender.submit(log.outgoing(outgoing, number, behind=behind(number))).result(WAIT_S).refining
    assert asking[0].wait(WAIT_S)
    urgent = sender.submit(outgoing(9, [b"u" * 3 * FRAME], on_sent=lambda *_: order.append("urgent")))
    submitted[0].set()
    assert not urgent.result(WAIT_S).error
    assert asking[1].wait(WAIT_S)
    third = sender.submit(log.outgoing(outgoing, 3, behind=behind(3)))
    submitted[1].set()
    assert third.result(WAIT_S).refining
    first = order.index("urgent")
    assert order[first - 1] == (2, ENDS[3])  # the frame that was decided then is the last before it
    assert order[first : first + order.count("urgent")] == ["urgent"] * order.count("urgent")  # nothing behind comes between
    ended = [log.followed.get(timeout=WAIT_S).transfer_id for _ in range(3)]
    assert ended == [3, 2, 1]  # the newest has most of its tokens to come
    assert {received.transfer_id for received in drained(desk.commits)} == {1, 2, 3, 9}
    assert len([log.settled.get(timeout=WAIT_S) for _ in range(3)]) == 3
    refined = drained(log.refined)
    assert all(right for _, _, right in refined)
    assert next(cut for received, cut, _ in refined if received.transfer_id == 2) == 4  # what was whole when it gave way


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_receiver_that_wants_no_better_ends_it_and_the_connection_goes_on(house, outgoing, when):
    log = Log()
    desk = log.desk(house) if when == "later" else log.desk(house, on_refined=None)
    sender = house.sender(desk.address, PacedLink(Capacity.constant(2e6)), keepalive=LASTING)
    for _ in range(2):  # the number can be used again
        assert sender.submit(log.outgoing(outgoing, 7)).result(WAIT_S).refining
        received = desk.committed()
        if when == "later":
            while received.frames < 4:
                time.sleep(0.001)
            received.decline()
        followed = log.followed.get(timeout=WAIT_S)
        assert followed.reason == ""
        assert followed.cut < FINEST
        assert log.settled.get(timeout=WAIT_S) is received
        held = bytes(received.sink.data)
        assert log.holds(received, received.cut)
        assert not sender.submit(outgoing(8, [b"next"])).result(WAIT_S).error
        assert desk.committed().sink.data == b"next"
        assert received.sink.data == held  # nobody writes there any more
    assert sender._channel is not None
    assert drained(log.settled) == drained(log.followed) == drained(desk.aborts) == []


def test_the_same_number_again_ends_what_follows_the_first(house, outgoing):
    log = Log()
    desk = log.desk(house)
    sender = house.sender(desk.address, PacedLink(Capacity.constant(3e6)), keepalive=LASTING)
    sender.submit(log.outgoing(outgoing, 7)).result(WAIT_S)
    first, data = desk.committed(), log.data[7]
    assert not sender.submit(log.outgoing(outgoing, 7)).result(WAIT_S).error
    assert log.settled.get(timeout=WAIT_S) is first
    assert first.sink.data[: ENDS[first.cut]] == data[: ENDS[first.cut]]
    second = desk.committed()
    assert log.settled.get(timeout=WAIT_S) is second
    assert log.holds(second, FINEST)
    assert [log.followed.get(timeout=WAIT_S).cut for _ in range(2)] == [first.cut, FINEST]


# Breaks


@pytest.mark.parametrize("at", [2.5, 4, 6.9])
def test_after_a_break_only_what_is_missing_follows(house, outgoing, at):
    log = Log()
    desk = log.desk(house)
    house.transport = Faulty(house.transport, [Fault("break", int(at * FRAME))])
    sent = house.sender(desk.address, PacedLink(Capacity.constant(2e7)), keepalive=LASTING).submit(log.outgoing(outgoing, 1)).result(WAIT_S)
    assert (sent.resumes, sent.refining) == (0, True)
    received = desk.committed()
    followed = log.followed.get(timeout=WAIT_S)
    assert (followed.cut, followed.reason) == (FINEST, "")
    assert followed.wire_bytes < ENDS[-1] - ENDS[1] + 3 * FRAME
    assert log.settled.get(timeout=WAIT_S) is received
    assert received.epoch == 1
    assert received.sink.data == log.data[1]
    assert all(right for _, _, right in drained(log.refined))


def test_what_cannot_be_resumed_ends_and_the_request_stays_good(house, outgoing):
    log = Log()
    desk = log.desk(house, keepalive=BRIEF)
    sender = house.sender(desk.address, PacedLink(Capacity.constant(1e6)), keepalive=BRIEF)
    sender.submit(log.outgoing(outgoing, 1)).result(WAIT_S)
    received = desk.committed()

    class Gone:
        def connect(self, *where, **how):
            raise PeerError("nobody is there any more")

    sender._transport = Gone()
    sender._channel.connection.abort()
    followed = log.followed.get(timeout=WAIT_S)
    assert "nobody is there" in followed.reason
    assert log.settled.get(timeout=WAIT_S) is received
    assert log.holds(received, received.cut)
    assert desk.aborts.empty()


def test_what_breaks_again_and_again_without_getting_on_is_given_up(house, outgoing):
    """The first connection is good for the start; each later one breaks in its first frame behind."""
    log = Log()
    desk = log.desk(house, keepalive=BRIEF)
    house.transport = Faulty(house.transport, [Fault("break", int(2.5 * FRAME)), *[Fault("break", 20_000)] * 40])
    house.sender(desk.address, keepalive=BRIEF).submit(log.outgoing(outgoing, 1)).result(WAIT_S)
    received = desk.committed()
    assert log.followed.get(timeout=WAIT_S).reason
    assert house.transport.connections <= 4
    assert log.settled.get(timeout=WAIT_S) is received
    assert log.holds(received, received.cut)


@pytest.mark.parametrize("how", ["sender", "receiver", "cancel"])
def test_whoever_leaves_settles_what_was_refined(house, outgoing, how):
    log = Log()
    desk = log.desk(house)
    sender = house.sender(desk.address, PacedLink(Capacity.constant(1e6)), keepalive=BRIEF)
    offered = log.outgoing(outgoing, 1)
    sender.submit(offered).result(WAIT_S)
    received = desk.committed()
    begun_s = time.monotonic()
    match how:
        case "sender":
            sender.close()
        case "receiver":
            house.open.remove(desk.receiver.close)
            desk.receiver.close()
        case "cancel":
            offered.cancel.set()
    assert log.settled.get(timeout=WAIT_S) is received
    assert (log.followed.get(timeout=WAIT_S).reason == "") == (how == "cancel")
    assert time.monotonic() - begun_s < LASTING.hold_s / 2  # at once, not when its lease is over
    assert log.holds(received, received.cut)
    house.close()
    assert drained(log.settled) == drained(log.followed) == drained(desk.aborts) == []


# Peers that say what no sender would


def started(house, desk, instance="0a" * 16):
    """A peer whose transfer of 50 of 150 bytes is committed, and may be refined."""
    channel = house.channel(desk.address, instance=instance)
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


def test_the_odd_peer_of_these_tests_can_refine(house):
    log = Log()
    log.data[1] = b"d" * 150
    desk = log.desk(house)
    channel, tags = started(house, desk)
    received = desk.committed()
    tags.append(data(channel, 1))
    commit(channel, tags, 1)
    commit(channel, tags, 1, flags=0)  # nothing follows
    assert [(cut, right) for _, cut, right in drained(log.refined)] == [(1, True), (1, True)]
    assert log.settled.get(timeout=WAIT_S) is received


def test_an_acknowledgement_of_the_start_that_was_lost_is_given_again(house):
    log = Log()
    desk = log.desk(house)
    log.data[1] = b"d" * 150
    channel, tags = started(house, desk)
    channel.connection.abort()
    channel = house.channel(desk.address, instance="0a" * 16)
    assert offer(channel, epoch=1) == Grant(150, held=50, frames=1, committed=True, refining=True)
    tags.append(data(channel, 1, epoch=1))
    commit(channel, tags, 1, flags=0, epoch=1)
    channel.connection.abort()
    channel = house.channel(desk.address, instance="0a" * 16)
    assert offer(channel, epoch=2) == Grant(150, held=100, frames=2, committed=True)
    assert desk.committed().sink.data == b"d" * 100 + bytes(50)
    assert desk.commits.empty()


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda channel, tags: data(channel, 2), "frame 2"),
        (lambda channel, tags: data(channel, 1, epoch=1), "not granted"),
        (lambda channel, tags: data(channel, 1, size=101), "were granted"),
        (lambda channel, tags: commit(channel, [*tags, b"x" * 16], 1), "COMMIT"),
        (lambda channel, tags: offer(channel, serial=1), "being refined"),
        (lambda channel, tags: channel.send(FrameHeader(ABORT, 99), [Abort("what is that?").payload()]), ""),  # heard, and no news
    ],
)
def test_a_broken_rule_ends_the_connection_and_leaves_what_was_promised(house, outgoing, wrong, complaint, caplog):
    log = Log()
    log.data[1] = b"d" * 150
    desk = log.desk(house)
    channel, tags = started(house, desk)
    received = desk.committed()
    with pytest.raises(PeerError):
        until_the_end(channel, lambda: wrong(channel, tags))
    assert log.settled.get(timeout=WAIT_S) is received
    assert log.holds(received, 0)
    assert received.sink.data == b"d" * 50 + bytes(100)
    assert complaint in caplog.text
    assert not house.sender(desk.address, keepalive=LASTING).submit(outgoing(2, [b"others"])).result(WAIT_S).error


def until_the_end(channel, say):
    say()
    while True:
        channel.expect(ACK)


def test_what_was_on_its_way_when_it_was_declined_is_thrown_away(house):
    log = Log()
    desk = log.desk(house)
    channel, _ = started(house, desk)
    received = desk.committed()
    received.decline()
    assert log.settled.get(timeout=WAIT_S) is received
    data(channel, 1)
    with pytest.raises(Refused, match="no better"):
        channel.expect(GRANT)
    channel.send(FrameHeader(ABORT, 1), [Abort("as you like").payload()])
    assert offer(channel, serial=1) == Grant(150)  # of the same number
    assert received.sink.data == b"d" * 50 + bytes(100)


def test_one_connection_refines_a_bounded_number(house):
    from abkt.transfer.receive.session import MOST_REFINING

    log = Log()
    desk = log.desk(house)
    channel = house.channel(desk.address, instance="0a" * 16)
    for number in range(MOST_REFINING + 3):
        channel.send(FrameHeader(OFFER, number, number), [Offer(1, "stream", 1, (50, 100, 150)).payload()])
        tag = channel.send(FrameHeader(DATA, number, 0, 0), [b"d" * 50])[1]
        channel.send(FrameHeader(COMMIT, number, 1, flags=MORE), [Commit(0, 50, digest_of([tag]).hex()).payload()])
        while (header := channel.header()).type is not ACK or not header.flags:
            channel.message(header)
        channel.message(header)
    assert [log.settled.get(timeout=WAIT_S).transfer_id for _ in range(3)] == [0, 1, 2]
    assert log.settled.empty()


def test_a_receiver_that_forgot_what_it_acknowledged_gets_nothing_more(house, outgoing):
    log = Log()
    listener = house.listener()
    sender = house.sender(listener.address, keepalive=BRIEF)
    future = sender.submit(log.outgoing(outgoing, 1))
    for turn in range(2):
        channel = house.answered(listener)
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
    assert "forgotten" in log.followed.get(timeout=WAIT_S).reason


def test_sinks_of_the_start_alone_leave_nothing_to_follow(house, outgoing):
    log = Log()
    desk = log.desk(house, sink_of=lambda offer: BufferSink(ENDS[1]))
    sent = house.sender(desk.address, keepalive=LASTING).submit(log.outgoing(outgoing, 1)).result(WAIT_S)
    assert not sent.refining
    assert not desk.committed().refinable

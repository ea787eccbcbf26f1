"""The conformance suite over all transports: exactly the bytes up to the cut arrive, and not before the link has carried them."""

import math
import os
import random
import socket
import threading
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.transfer.link import PacedLink
from abkt.transfer.pieces import BufferSink, PiecesSink
from abkt.transfer.protocol.frame import HEADER_BYTES
from abkt.transfer.protocol.messages import Commit, Offer
from abkt.transfer.send.outgoing import FRAME_BYTES, FrameSize
from abkt.transfer.transports.tcp import Tcp

WAIT_S = 30.0
KIB = 1024


def scatter(data, seed):
    """The data in new buffers of at most 9,000 bytes each."""
    dice, pieces, start = random.Random(seed), [], 0
    while start < len(data):
        stop = start + dice.randint(1, 9000)
        pieces.append(bytearray(data[start:stop]))
        start = stop
    return pieces


@given(sizes=st.lists(st.integers(1, 300_000), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scattered_pieces_arrive_in_the_receivers_scattered_memory(endpoints, outgoing, sizes, seed):
    """Several transfers go over one connection, in order, into the receiver's own memory."""
    receiver = endpoints.receiver()
    sender = endpoints.sender(receiver.address)
    memory = {}
    receiver.sink_of = lambda offer: PiecesSink(memory.setdefault(offer.request_id, scatter(bytes(offer.size), seed + 1)))
    whole = [random.Random(seed + size).randbytes(size) for size in sizes]
    futures = [sender.submit(outgoing(number, scatter(data, seed))) for number, data in enumerate(whole)]
    for number, data in enumerate(whole):
        received, sent = receiver.committed(), futures[number].result(WAIT_S)
        assert (received.peer, received.transfer_id, received.cut, received.payload_bytes) == ("prefill-0", number, 0, len(data))
        assert b"".join(memory[number]) == data
        assert (sent.error, sent.cut, sent.payload_bytes, sent.retries) == ("", 0, len(data), 0)
        assert sent.offered_s <= sent.granted_s <= sent.first_byte_s <= sent.last_byte_s <= sent.acked_s
        assert received.offered_s <= received.granted_s <= received.first_byte_s <= received.last_byte_s <= received.committed_s
    endpoints.close()


def test_a_frame_may_have_more_pieces_than_one_call_takes(endpoints, outgoing):
    data = os.urandom(60_000)
    receiver = endpoints.receiver(sink_of=lambda offer: PiecesSink(memory))
    memory = [bytearray(20) for _ in range(3000)]
    sent = endpoints.sender(receiver.address).submit(outgoing(1, [data[i : i + 10] for i in range(0, len(data), 10)])).result(WAIT_S)
    receiver.committed()
    assert b"".join(memory) == data
    if endpoints.socket and not (endpoints.key and endpoints.key.encrypt):  # ciphertext is one piece
        assert sent.calls >= 6  # 6,001 buffers, 1,024 a call


def test_the_offer_arrives_with_all_its_fields(endpoints, outgoing):
    receiver = endpoints.receiver()
    offered = outgoing(5, [b"abc"], ends=(1, 3), more={"osl": 12, "greedy": True, "model": "probe"})
    offered.transfer_id = 2**64 - 1
    endpoints.sender(receiver.address).submit(offered).result(WAIT_S)
    received = receiver.committed()
    assert (received.offer, received.transfer_id) == (offered.offer, 2**64 - 1)


def test_a_receiver_serves_two_senders_at_once(endpoints, outgoing):
    receiver = endpoints.receiver()
    data = [os.urandom(1 << 20), os.urandom(1 << 20)]
    futures = [endpoints.sender(receiver.address).submit(outgoing(i, [data[i]])) for i in range(2)]
    got = {received.transfer_id: received.sink.data for received in (receiver.committed(), receiver.committed())}
    assert got == dict(enumerate(data))
    assert not any(future.result(WAIT_S).error for future in futures)


# The cut. At 1 MB/s a frame has the smallest size, 64 KiB. Only pacing advances the clock.


SLOW = Capacity.constant(1e6)
FRAME = FRAME_BYTES[0]


@pytest.fixture
def streamed(endpoints, outgoing, fake_clock):
    """streamed(ends, answers) sends a stream. next_cut returns the answers in turn and repeats the last one. Returns (data, Received, Sent,
    calls of next_cut)."""

    def run(ends, answers, sink_of=lambda offer: BufferSink(offer.size)):
        receiver, clock, asked = endpoints.receiver(sink_of=sink_of), fake_clock(), []
        data = os.urandom(ends[-1])

        def next_cut(now_s, sent_bytes, sent_cut):
            asked.append((now_s, sent_bytes, sent_cut))
            return answers[min(len(asked), len(answers)) - 1]

        sender = endpoints.sender(receiver.address, PacedLink(SLOW, clock, clock.sleep))
        sent = sender.submit(outgoing(1, [data], ends, next_cut=next_cut)).result(WAIT_S)
        assert not sent.error
        received = receiver.committed()
        endpoints.close()
        return data, received, sent, asked

    return run


@pytest.mark.parametrize(
    ("answers", "cut"),
    [
        ([0], 0),
        ([9], 9),
        ([9, 9, 2], 2),  # lowered during the transfer: nothing after band 2 is sent
        ([1, 5, 3, 7], 7),  # up and down
        ([9, 9, 9, 9, 1], 3),  # below the bytes already sent: the transfer ends at once
        ([99], 9),
    ],
)
def test_the_cut_may_move_and_exactly_its_prefix_arrives(streamed, answers, cut):
    ends = tuple(FRAME * band for band in range(1, 11))
    data, received, sent, asked = streamed(ends, answers)
    assert received.cut == sent.cut == cut
    assert received.payload_bytes == sent.payload_bytes == ends[cut]
    assert received.sink.data == data[: ends[cut]] + bytes(ends[-1] - ends[cut])
    assert sent.wire_bytes == ends[cut] + HEADER_BYTES * (cut + 1) + metadata(received, sent)
    assert [left for _, left, _ in asked] == [0, *ends[: cut + 1]]  # called before each frame, and once more at the end


@given(
    st.lists(st.integers(1, 200_000), min_size=1, max_size=8).map(lambda bands: tuple(sum(bands[: i + 1]) for i in range(len(bands)))),
    st.lists(st.integers(0, 8), min_size=1, max_size=12),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bands_and_cuts_deliver_exactly_a_prefix(streamed, ends, answers):
    data, received, sent, asked = streamed(ends, answers)
    assert received.sink.data[: sent.payload_bytes] == data[: sent.payload_bytes]
    assert not any(received.sink.data[sent.payload_bytes :])
    last = answers[min(len(asked), len(answers)) - 1]
    for _, left, complete in asked:
        assert complete == max([band for band, end in enumerate(ends) if end <= left], default=0)
    stops = [left for _, left, _ in asked]
    assert all(0 < b - a <= FRAME for a, b in pairwise(stops))
    assert sent.cut == received.cut == max(band for band, end in enumerate(ends) if end <= stops[-1])
    assert sent.cut >= min(last, len(ends) - 1)
    for answer, (_, left, complete) in zip(answers + [answers[-1]] * len(asked), asked[:-1], strict=False):
        assert left < ends[min(max(answer, complete), len(ends) - 1)]  # a frame was sent only while the cut was not reached


def metadata(received, sent):
    commit = Commit(sent.cut, sent.payload_bytes, "0" * 32)
    return len(received.offer.payload()) + len(commit.payload()) + 2 * HEADER_BYTES


def test_a_smaller_grant_limits_the_cut_to_what_fits(streamed):
    data, received, sent, _ = streamed((FRAME, 2 * FRAME, 3 * FRAME), [2], sink_of=lambda offer: BufferSink(2 * FRAME + 5))
    assert (sent.cut, sent.payload_bytes) == (1, 2 * FRAME)
    assert received.sink.data == data[: 2 * FRAME] + bytes(5)


def test_an_offer_larger_than_its_grant_is_not_sent(endpoints, outgoing):
    receiver = endpoints.receiver(sink_of=lambda offer: BufferSink(99))
    sender = endpoints.sender(receiver.address)
    sent = sender.submit(outgoing(1, [bytes(100)])).result(WAIT_S)
    assert "granted 99 bytes, but the coarsest cut needs 100" in sent.error
    assert sent.payload_bytes == 0
    assert receiver.aborted()[0].transfer_id == 1
    assert not sender.submit(outgoing(2, [bytes(99)])).result(WAIT_S).error


# The frame


@given(
    st.lists(st.integers(1, 3 << 20), min_size=1, max_size=20, unique=True).map(lambda ends: tuple(sorted(ends))),
    st.floats(1, 1e10),
    st.data(),
)
def test_a_frame_ends_at_the_end_of_a_band_where_possible(ends, rate, data):
    cut = data.draw(st.integers(0, len(ends) - 1))
    start = data.draw(st.integers(0, ends[cut] - 1))
    size = FrameSize(rate)
    stop = size.stop(ends, start, cut)
    assert start < stop <= min(ends[cut], start + size.size())
    assert FRAME <= size.size() <= FRAME_BYTES[1]
    if stop not in ends:
        assert stop == start + size.size()
        assert not [end for end in ends if start + FRAME <= end <= stop]


def test_a_frame_holds_20_ms_of_the_link():
    size = FrameSize()
    assert size.size() == FRAME
    size.observe(1_000_000, 0.1)
    assert size.size() == 200_000
    size.observe(1_000_000, 1e-4)
    assert size.size() == FRAME_BYTES[1]


def test_no_frame_is_larger_than_the_connection_can_use(endpoints, outgoing):
    receiver, wire = endpoints.receiver(), []
    sender = endpoints.sender(receiver.address)
    for number in range(2):  # the second one starts with an estimate of the link
        asked = outgoing(number, [os.urandom(24 << 20)], on_sent=lambda now_s, size, duration_s: wire.append(size))
        assert not sender.submit(asked).result(WAIT_S).error
        receiver.committed()
    assert FRAME < max(wire) <= sender._channel.connection.frame_bytes + HEADER_BYTES


# Time


@pytest.mark.parametrize(
    "capacity",
    [
        Capacity.constant(250_000.0),
        Capacity((0.0, 0.4), (12.5e6, 250_000.0)),  # a drop from 100 to 2 Mbit/s
        Capacity((0.0, 0.1), (6.25e6, 625_000.0), period_s=0.2),  # 50 to 5 and back
    ],
)
def test_a_paced_transfer_takes_the_time_that_the_capacity_gives(endpoints, outgoing, fake_clock, capacity):
    clock = fake_clock(100.0)
    samples = []
    receiver = endpoints.receiver()
    sender = endpoints.sender(receiver.address, PacedLink(capacity, clock, clock.sleep, origin_s=100.0))
    data = os.urandom(6_000_000)
    offered = outgoing(1, [data], on_sent=lambda now_s, size, duration_s: samples.append((now_s, size, duration_s)))
    sent = sender.submit(offered).result(WAIT_S)
    assert receiver.committed().sink.data == data
    frames = sum(size for _, size, _ in samples)
    assert frames == len(data) + HEADER_BYTES * len(samples)
    end_s = 100.0 + capacity.finish_s(sent.first_byte_s - 100.0, frames)
    assert sent.last_byte_s == pytest.approx(end_s, abs=1e-6)
    assert sum(duration_s for _, _, duration_s in samples) == pytest.approx(end_s - sent.first_byte_s)
    assert sent.acked_s == pytest.approx(100.0 + capacity.finish_s(0.0, sent.wire_bytes), abs=1e-6)  # OFFER and COMMIT are paced too


def test_no_byte_arrives_before_the_link_has_carried_it(endpoints, outgoing, fake_clock):
    """The clock stops in the middle of the fourth frame. Three frames have arrived, and the fourth has not."""
    clock, stopped, go_on = fake_clock(), threading.Event(), threading.Event()
    frame_s = (FRAME + HEADER_BYTES) / 1e6

    def sleep(duration_s):
        if clock.now_s + duration_s > 3.5 * frame_s and not go_on.is_set():
            stopped.set()
            assert go_on.wait(WAIT_S)
        clock.sleep(duration_s)

    receiver, sink, seen = endpoints.receiver(), BufferSink(5 * FRAME), threading.Event()
    buffers = sink.buffers
    sink.buffers = lambda start, stop: (start == 2 * FRAME and seen.set()) or buffers(start, stop)
    receiver.sink_of = lambda offer: sink
    future = endpoints.sender(receiver.address, PacedLink(SLOW, clock, sleep)).submit(outgoing(1, [bytes([1]) * 5 * FRAME]))
    assert stopped.wait(WAIT_S)
    assert seen.wait(WAIT_S)
    assert not any(sink.data[3 * FRAME :])
    assert receiver.commits.empty()
    go_on.set()
    assert not future.result(WAIT_S).error
    assert all(sink.data)


# Waiting, refusing, cancelling, closing


def test_an_offer_waits_until_there_is_memory(endpoints, outgoing):
    free, asked = threading.Event(), threading.Semaphore(0)

    def sink_of(offer):
        asked.release()
        return BufferSink(offer.size) if free.is_set() else None

    receiver = endpoints.receiver(sink_of=sink_of)
    future = endpoints.sender(receiver.address).submit(outgoing(1, [b"waited"]))
    assert all(asked.acquire(timeout=WAIT_S) for _ in range(2))
    assert not future.done()
    free.set()
    receiver.memory_freed()
    assert math.isfinite(future.result(WAIT_S).granted_s)
    assert receiver.committed().sink.data == b"waited"


def test_a_refused_offer_leaves_the_connection_open(endpoints, outgoing):
    def sink_of(offer):
        if offer.size > 10:
            raise ValueError("prompt of 11 tokens is longer than this node can hold")
        return BufferSink(offer.size)

    receiver = endpoints.receiver(sink_of=sink_of)
    sender = endpoints.sender(receiver.address)
    sent = sender.submit(outgoing(1, [bytes(11)])).result(WAIT_S)
    assert sent.error == "decode-0: prompt of 11 tokens is longer than this node can hold"
    assert math.isnan(sent.granted_s)
    channel = sender._channel
    assert not sender.submit(outgoing(2, [bytes(10)])).result(WAIT_S).error
    assert sender._channel is channel
    assert receiver.aborts.empty()


@pytest.mark.parametrize("when", ["waiting", "sending", "queued"])
def test_a_cancelled_transfer_frees_the_memory_of_its_receiver(endpoints, outgoing, when):
    receiver = endpoints.receiver()
    sender = endpoints.sender(receiver.address)
    begun = threading.Event()
    first = outgoing(1, [bytes(1 << 20)])
    if when == "waiting":
        receiver.sink_of = lambda offer: begun.set()
    else:
        first.next_cut = lambda now_s, sent_bytes, sent_cut: begun.set() or first.cancel.wait(WAIT_S) * 0
    second = outgoing(2, [b"next"])
    futures = [sender.submit(first), sender.submit(second)]
    assert begun.wait(WAIT_S)
    if when == "queued":
        assert futures[1].cancel()
    receiver.sink_of = lambda offer: BufferSink(offer.size)
    first.cancel.set()
    assert futures[0].result(WAIT_S).error == "cancelled by its sender"
    if when != "waiting":
        assert receiver.aborted()[0].transfer_id == 1
    if when != "queued":
        assert not futures[1].result(WAIT_S).error
        assert receiver.committed().transfer_id == 2


def test_closing_the_sender_fails_its_transfers(endpoints, outgoing):
    receiver = endpoints.receiver(sink_of=lambda offer: None)
    sender = endpoints.sender(receiver.address)
    futures = [sender.submit(outgoing(i, [b"x"])) for i in range(3)]
    sender.close()
    assert [future.result(0).error for future in futures] == ["the sender was closed"] * 3
    with pytest.raises(ValueError, match="is closed"):
        sender.submit(outgoing(4, [b"x"]))


def test_closed_senders_and_receivers_leave_no_socket_or_memory(endpoints, outgoing):
    before = sockets()
    receiver = endpoints.receiver()
    sender = endpoints.sender(receiver.address)
    assert not sender.submit(outgoing(1, [b"x"])).result(WAIT_S).error
    endpoints.sender(receiver.address).close()
    assert sockets() > before
    endpoints.close()
    assert sockets() == before
    assert "memfd:abkt" not in Path("/proc/self/maps").read_text()
    assert not [path for path in endpoints.path.rglob("*") if path.is_socket()]


def sockets():
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return found


# Addresses


def test_a_taken_address_is_refused_in_one_line(endpoints):
    receiver = endpoints.receiver()
    with pytest.raises(ValueError, match=r"in use; give another|exists; give another") as error:
        endpoints.transport.listen(receiver.address, 1.0)
    assert "\n" not in str(error.value)


def test_connecting_where_nobody_listens_fails_the_transfer(endpoints, outgoing):
    receiver = endpoints.receiver()
    receiver.close()
    endpoints.open.clear()
    sent = endpoints.sender(receiver.address).submit(outgoing(1, [b"x"])).result(WAIT_S)
    assert sent.error.startswith(f"cannot connect to {receiver.address}")


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", "localhost:x", "localhost:65536", "localhost:-1", "example.org:80"])
def test_a_malformed_address_is_refused_in_one_line(address):
    with pytest.raises(ValueError, match=r"host:port|IP address"):
        Tcp().listen(address, 1.0)


def test_an_offer_must_match_its_source(outgoing):
    made = outgoing(1, [b"abc"])
    with pytest.raises(ValueError, match="not those of its source"):
        type(made)(1, Offer(1, "raw", 1, (4,)), made.source)
    with pytest.raises(ValueError, match="tokens must be"):
        type(made)(1, Offer(1, "raw", -1, (3,)), made.source)
    with pytest.raises(ValueError, match="64 bits"):
        outgoing(2**64, [b"abc"])


def test_the_kernels_unsent_queue_is_limited_to_half_a_frame():
    """Half a frame is 10 ms of the link. The limit is at least 128 KiB, and messages do not change it."""
    listener = Tcp().listen("127.0.0.1:0", WAIT_S)
    there = Tcp().connect(listener.address, WAIT_S)
    here = listener.accept(WAIT_S)
    left = []
    for size in (64, 64 * KIB, 4 << 20, 64, 256 * KIB):
        reader = threading.Thread(target=here.receive, args=([memoryview(bytearray(size))], lambda: None))
        reader.start()
        there.send([bytes(size)], lambda: None)
        reader.join(WAIT_S)
        left.append(there._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT))
    assert left == [128 * KIB, 128 * KIB, 2 << 20, 2 << 20, 128 * KIB]
    for each in (there, here, listener):
        each.close()

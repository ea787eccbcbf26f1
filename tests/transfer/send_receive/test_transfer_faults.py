"""The fault suite over all transports: a peer that breaks the protocol, falls silent or dies disturbs no other transfer."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.transfer.link import PacedLink
from abkt.transfer.pieces import BufferSink
from abkt.transfer.protocol.channel import Keepalive
from abkt.transfer.protocol.frame import COMMITTED, DATA_CAP_BYTES, FrameError, FrameHeader, FrameType, digest_of, seal
from abkt.transfer.protocol.messages import Ack, Commit, Grant, Hello, Offer
from abkt.transfer.transport import PeerError, PeerLost
from tests.transfer.backends import BARE

WAIT_S = 30.0
bare = pytest.mark.parametrize("endpoints", BARE, indirect=True)  # for slow tests whose result does not depend on a key
SHORT = Keepalive(ping_s=0.2, silence_s=0.8, resume_s=0.1, hold_s=0.2)
DATA, COMMIT, ACK = FrameType.DATA, FrameType.COMMIT, FrameType.ACK


def nothing():
    pass


def acknowledged(channel):
    """Wait for the ACK of the COMMIT; ACKs of progress may come before it."""
    while True:
        header, _ = channel.expect(ACK)
        if header.flags & COMMITTED:
            return header.offset


def sealed(channel, header, payload=()):
    """A frame of this channel as it goes over the wire, to be damaged or cut short by the test; it counts as sent."""
    return bytearray(b"".join(channel.outgoing.seal(header, payload)))


def offer(channel, size=100, transfer_id=1, request_id=1):
    channel.send(FrameHeader(FrameType.OFFER, transfer_id), [Offer(request_id, "raw", 1, (size,)).payload()])
    return Grant.parse(channel.expect(FrameType.GRANT)[1])


def commit(channel, tags, size, transfer_id=1, **change):
    fields = {"cut": 0, "size": size, "digest": digest_of(tags).hex()} | change
    channel.send(FrameHeader(COMMIT, transfer_id, len(tags)), [Commit(**fields).payload()])


def data(channel, sequence=0, offset=0, size=50, transfer_id=1, epoch=0):
    return channel.send(FrameHeader(DATA, transfer_id, sequence, offset, epoch), [b"d" * size])[1]


def test_the_hand_driven_peer_of_these_tests_can_complete_a_transfer(endpoints):
    """A correct transfer, frame by frame, is accepted. So each refusal below is due to its single fault."""
    receiver = endpoints.receiver()
    channel = endpoints.channel(receiver.address)
    assert offer(channel) == Grant(100)
    tags = [data(channel), data(channel, 1, 50)]
    commit(channel, tags, 100)
    assert acknowledged(channel) == 100
    received = receiver.committed()
    assert (received.peer, received.sink.data) == ("odd-peer", b"d" * 100)


def damaged(channel):
    frame = sealed(channel, FrameHeader(DATA, 1, 0, 0, 0, 50), [b"d" * 50])
    frame[-1] ^= 1
    channel.connection.send([frame], nothing)


def oversized(channel):
    channel.connection.send([seal(FrameHeader(DATA, 1, 0, 0, 0, DATA_CAP_BYTES + 1))], nothing)


def other_version(channel):
    frame = sealed(channel, FrameHeader(DATA, 1, length=50), [b"d" * 50])
    frame[4] = 9
    channel.connection.send([frame], nothing)


def duplicate(channel):
    data(channel)
    data(channel)


def swapped(channel):
    data(channel, 1, 50)


def hole(channel):
    data(channel, 0, 50)


def beyond(channel):
    data(channel, 0, 0, 101)


def beyond_in_steps(channel):
    data(channel, 0, 0, 60)
    data(channel, 1, 60, 60)


def other_transfer(channel):
    data(channel, transfer_id=2)


def other_epoch(channel):
    data(channel, epoch=1)


def second_offer(channel):
    channel.send(FrameHeader(FrameType.OFFER, 2), [Offer(2, "raw", 1, (10,)).payload()])


def second_hello(channel):
    channel.send(FrameHeader(FrameType.HELLO), [Hello("odd-peer", "x").payload()])


def answer_of_a_receiver(channel):
    channel.send(FrameHeader(ACK, 1, offset=0), [Ack().payload()])


def commit_too_soon(channel):
    commit(channel, [data(channel)], 100)


def commit_of_another_size(channel):
    commit(channel, [data(channel), data(channel, 1, 50)], 99)


def commit_of_other_bytes(channel):
    tags = [data(channel), data(channel, 1, 50)]
    commit(channel, tags, 100, digest=digest_of(reversed(tags)).hex())


def commit_of_another_cut(channel):
    commit(channel, [data(channel), data(channel, 1, 50)], 100, cut=1)


def not_a_frame(channel):
    channel.connection.send([b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n" + bytes(64)], nothing)


FAULTS = [
    (damaged, "does not fit"),
    (oversized, "above the cap"),
    (other_version, "version 9, this side 3"),
    (duplicate, "frame 0 of transfer 1 came when 1 was due"),
    (swapped, "frame 1 of transfer 1 came when 0 was due"),
    (hole, "starts at byte 50, not at 0"),
    (beyond, "ends at byte 101, but 100 were granted"),
    (beyond_in_steps, "ends at byte 120, but 100 were granted"),
    (other_transfer, "transfer 2, epoch 0, which was not granted"),
    (other_epoch, "transfer 1, epoch 1, which was not granted"),
    (second_offer, "OFFER frame came out of turn"),
    (second_hello, "HELLO frame came out of turn"),
    (answer_of_a_receiver, "ACK frame came out of turn"),
    (commit_too_soon, "COMMIT of 100 bytes does not fit the 50"),
    (commit_of_another_size, "COMMIT of 99 bytes does not fit the 100"),
    (commit_of_other_bytes, "does not fit"),
    (commit_of_another_cut, "COMMIT of cut 1"),
    (not_a_frame, "does not speak this protocol"),
]


@pytest.mark.parametrize(("fault", "complaint"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_protocol_violation_ends_only_its_own_connection(endpoints, outgoing, caplog, fault, complaint):
    """The memory is released once, nothing is committed, the peer is told, one line is logged, and another transfer goes on."""
    receiver = endpoints.receiver()
    other = endpoints.channel(receiver.address)
    offer(other, transfer_id=9, request_id=9)
    tags = [data(other, transfer_id=9)]

    channel = endpoints.channel(receiver.address)
    offer(channel)
    fault(channel)
    with pytest.raises(PeerError, match=complaint):
        acknowledged(channel)
    received, reason = receiver.aborted()
    assert (received.peer, received.transfer_id) == ("odd-peer", 1)
    assert complaint in reason
    assert "\n" not in reason
    assert [record.getMessage() for record in caplog.records] == [f"odd-peer: {reason}; connection closed"]
    with pytest.raises(PeerLost):
        channel.header()

    tags.append(data(other, 1, 50, transfer_id=9))
    commit(other, tags, 100, transfer_id=9)
    assert receiver.committed().transfer_id == 9
    assert not endpoints.sender(receiver.address).submit(outgoing(3, [b"x" * 1000])).result(WAIT_S).error
    assert receiver.committed().transfer_id == 3
    assert receiver.aborts.empty()
    assert receiver.commits.empty()


def test_data_without_a_grant_is_refused(endpoints):
    receiver = endpoints.receiver()
    channel = endpoints.channel(receiver.address)
    data(channel)
    with pytest.raises(PeerError, match="DATA frame came out of turn"):
        acknowledged(channel)
    assert receiver.aborts.empty()
    assert receiver.commits.empty()


def test_a_byte_beyond_the_grant_is_never_written(endpoints):
    """The sink is the first part of a larger memory. The rest of that memory stays unchanged."""
    memory = bytearray(b"." * 200)
    receiver = endpoints.receiver(sink_of=lambda offer: FrontSink(memory, 100))
    channel = endpoints.channel(receiver.address)
    assert offer(channel, size=200) == Grant(100)
    beyond(channel)
    receiver.aborted()
    assert memory == b"." * 200


class FrontSink:
    def __init__(self, memory, size):
        self.size = size
        self._memory = memoryview(memory)

    def buffers(self, start, stop):
        return [self._memory[start:stop]]


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=4), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_release_the_memory_and_the_next_peer_is_served(endpoints, shared_receiver, chunks, granted):
    """The random bytes come before or after a grant."""
    receiver = shared_receiver
    channel = endpoints.channel(receiver.address)
    if granted:
        offer(channel, size=10)
    with suppress(PeerLost):  # the receiver may close the connection first
        channel.connection.send([sealed(channel, FrameHeader(DATA, 1, length=9)), *chunks], nothing)
    channel.connection.abort()
    if granted:
        assert receiver.aborted()[0].transfer_id == 1
    good = endpoints.channel(receiver.address)
    offer(good, size=50)
    commit(good, [data(good)], 50)
    assert acknowledged(good) == 50
    assert receiver.committed().peer == "odd-peer"
    assert receiver.aborts.empty()
    good.connection.abort()


@pytest.fixture
def shared_receiver(endpoints):
    """One receiver for all examples of a Hypothesis test."""
    return endpoints.receiver()


# Silence and death


@bare
def test_a_stalled_receiver_is_detected_and_named(endpoints, outgoing, caplog):
    """The receiver grants, and then neither reads nor sends while the sender is in the middle of its frames."""
    listener = endpoints.listener()
    sender = endpoints.sender(listener.address, keepalive=SHORT)
    future = sender.submit(outgoing(1, [bytes(64 << 20)]))
    channel = endpoints.accepted(listener, SHORT)
    channel.expect(FrameType.OFFER)
    channel.send(FrameHeader(FrameType.GRANT, 1), [Grant(64 << 20).payload()])
    sent = future.result(WAIT_S)
    assert "0.8 s" in sent.error
    assert "odd-receiver" in sent.error or listener.address in sent.error
    assert sent.payload_bytes < 64 << 20


@bare
def test_a_receiver_that_reads_but_sends_nothing_counts_as_silent(endpoints, outgoing):
    """Its kernel takes the bytes slowly, but no frame comes back. The transfer would take 30 s and never be acknowledged."""
    listener = endpoints.listener()
    future = endpoints.sender(listener.address, keepalive=SHORT).submit(outgoing(1, [bytes(64 << 20)]))
    channel = endpoints.accepted(listener, SHORT)
    channel.expect(FrameType.OFFER)
    channel.send(FrameHeader(FrameType.GRANT, 1), [Grant(64 << 20).payload()])
    taken = memoryview(bytearray(64 << 10))
    with suppress(PeerLost):
        for _ in range(600):
            if future.done():
                break
            channel.connection.receive([taken], nothing)
            time.sleep(0.03)
    assert future.result(WAIT_S).error.startswith("odd-receiver has been silent for 0.8 s")


@bare
def test_a_stalled_receiver_on_a_slow_link_is_detected(endpoints, outgoing):
    """The unread bytes fit into the kernel's buffer, so sending never blocks. Only the missing PINGs show the stall."""
    listener = endpoints.listener()
    sender = endpoints.sender(listener.address, PacedLink(Capacity.constant(1000.0)), SHORT)
    future = sender.submit(outgoing(1, [bytes(1 << 20)]))
    channel = endpoints.accepted(listener, SHORT)
    channel.expect(FrameType.OFFER)
    channel.send(FrameHeader(FrameType.GRANT, 1), [Grant(1 << 20).payload()])
    assert future.result(WAIT_S).error.startswith("odd-receiver has been silent for 0.8 s")


@bare
@pytest.mark.parametrize("sent", [0, 30, 100])
def test_a_stalled_sender_is_detected_and_its_memory_freed(endpoints, caplog, sent):
    """The sender stalls between two frames (0), in a header (30) or in a payload (100)."""
    receiver = endpoints.receiver(keepalive=SHORT)
    channel = endpoints.channel(receiver.address, keepalive=SHORT)
    offer(channel)
    channel.connection.send([sealed(channel, FrameHeader(DATA, 1, length=50), [bytes(50)])[:sent]], nothing)
    received, reason = receiver.aborted()
    assert received.transfer_id == 1
    assert reason.endswith("silent for 0.8 s" if not sent else " for 0.8 s in the middle of a frame")
    assert len(caplog.records) == 1


@bare
def test_a_slow_link_does_not_count_as_silence(endpoints, outgoing):
    """One frame takes 1.5 times the silence allowed; both sides send PINGs meanwhile."""
    receiver = endpoints.receiver(keepalive=SHORT)
    link = PacedLink(Capacity.constant(50_000.0))
    assert not endpoints.sender(receiver.address, link, SHORT).submit(outgoing(1, [bytes(60_000)])).result(WAIT_S).error


@bare
def test_waiting_for_memory_does_not_count_as_silence(endpoints, outgoing):
    started_s = time.monotonic()
    receiver = endpoints.receiver(
        keepalive=SHORT, sink_of=lambda offer: BufferSink(offer.size) if time.monotonic() > started_s + 1.2 else None
    )
    assert not endpoints.sender(receiver.address, keepalive=SHORT).submit(outgoing(1, [b"x"])).result(WAIT_S).error


@bare
def test_an_idle_connection_stays_open(endpoints, outgoing):
    receiver = endpoints.receiver(keepalive=SHORT)
    sender = endpoints.sender(receiver.address, keepalive=SHORT)
    assert not sender.submit(outgoing(1, [b"x"])).result(WAIT_S).error
    channel = sender._channel
    time.sleep(1.2)
    assert not sender.submit(outgoing(2, [b"x"])).result(WAIT_S).error
    assert sender._channel is channel


def test_a_restarted_receiver_is_used_again(endpoints, outgoing):
    receiver = endpoints.receiver()
    sender = endpoints.sender(receiver.address)
    assert not sender.submit(outgoing(1, [b"x"])).result(WAIT_S).error
    receiver.close()
    assert sender.submit(outgoing(2, [b"x"])).result(WAIT_S).error.startswith("cannot connect to")
    again = type(receiver)(endpoints.transport, receiver.address, key=endpoints.key)
    endpoints.open[0] = again.close
    assert not sender.submit(outgoing(3, [b"y"])).result(WAIT_S).error
    assert again.committed().transfer_id == 3


def test_a_transfer_is_retried_if_the_connection_is_dead_before_the_grant(endpoints, outgoing):
    """The first connection ends right after the receiver has read its OFFER."""
    receiver = endpoints.receiver()
    sender = endpoints.sender(receiver.address)
    assert not sender.submit(outgoing(1, [b"x"])).result(WAIT_S).error
    calls = []

    def sink_of(offer):
        calls.append(offer)
        if len(calls) == 1:
            next(iter(receiver._sessions)).connection.abort()
            return None
        return BufferSink(offer.size)

    receiver.sink_of = sink_of
    sent = sender.submit(outgoing(2, [b"y"])).result(WAIT_S)
    assert (sent.error, sent.retries) == ("", 1)
    received = [receiver.committed(), receiver.committed()]
    assert [(each.transfer_id, each.epoch) for each in received] == [(1, 0), (2, 1)]


@bare
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_memory_of_a_killed_sender_is_released(endpoints, outgoing, how):
    receiver = endpoints.receiver()
    kind = type(endpoints.transport)
    code = f"""
import time
from contextlib import suppress
from {kind.__module__} import {kind.__name__}
from abkt.capacity import Capacity
from abkt.transfer.protocol.key import Key
from abkt.transfer.link import PacedLink
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.send.outgoing import Outgoing
from abkt.transfer.pieces import PiecesSource
from abkt.transfer.send.sender import Sender
source = PiecesSource([bytes(1 << 24)])
link = PacedLink(Capacity.constant(1e6))
key = {endpoints.key and (endpoints.key.secret, endpoints.key.encrypt)!r}
hello = Hello("doomed", "model of the tests, 2 layers")
sender = Sender({kind.__name__}(), {receiver.address!r}, hello, link, key=Key(*key) if key else None)
sent = sender.submit(Outgoing(7, Offer(7, "raw", 1, source.ends), source, on_sent=lambda *sample: print("sent", flush=True)))
time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"sent\n"
        process.send_signal(how)
        received, reason = receiver.aborted()
        process.wait(WAIT_S)
    assert (received.peer, received.transfer_id) == ("doomed", 7)
    assert received.payload_bytes < 1 << 24
    assert "closed the connection" in reason or "broke" in reason
    assert receiver.commits.empty()
    assert not endpoints.sender(receiver.address).submit(outgoing(8, [b"x"])).result(WAIT_S).error


def test_a_killed_receiver_fails_the_transfer_with_its_name(endpoints, outgoing):
    receiver = endpoints.receiver()
    closing = endpoints.open[-1]
    sender = endpoints.sender(receiver.address)
    offered = outgoing(1, [bytes(8 << 20)])
    offered.on_sent = lambda now_s, size, duration_s: endpoints.open.remove(closing) or closing()
    sent = sender.submit(offered).result(WAIT_S)
    assert "decode-0" in sent.error or receiver.address in sent.error
    assert "not resumed within 0.5 s" in sent.error
    assert receiver.aborted()[0].transfer_id == 1
    assert receiver.aborts.empty()


def test_a_sender_learns_why_the_receiver_closed_the_connection(endpoints, outgoing):
    """The receiver's ABORT comes while the sender is busy sending. It must not be lost when the connection is reset."""

    class DamagedSink(BufferSink):
        def buffers(self, start, stop):
            if start > 4 << 20:
                raise FrameError("DATA frame is damaged")
            return super().buffers(start, stop)

    receiver = endpoints.receiver(sink_of=lambda offer: DamagedSink(offer.size))
    sent = endpoints.sender(receiver.address).submit(outgoing(1, [bytes(32 << 20)])).result(WAIT_S)
    assert sent.error == "decode-0: DATA frame is damaged"
    assert receiver.aborted()[0].payload_bytes > 4 << 20


# Faults of this side


def test_a_policy_that_raises_fails_only_its_own_transfer(endpoints, outgoing, caplog):
    receiver = endpoints.receiver()
    sender = endpoints.sender(receiver.address)
    sent = sender.submit(outgoing(1, [b"x"], next_cut=lambda *view: 1 // 0)).result(WAIT_S)
    assert sent.error.startswith("ZeroDivisionError")
    assert "Traceback" in caplog.text
    assert "ZeroDivisionError" in receiver.aborted()[1]
    assert not sender.submit(outgoing(2, [b"x"])).result(WAIT_S).error


def test_an_accept_callback_that_raises_closes_that_connection(endpoints, outgoing, caplog):
    receiver = endpoints.receiver(sink_of=lambda offer: {}["missing"])
    sender = endpoints.sender(receiver.address)
    assert "the receiver failed" in sender.submit(outgoing(1, [b"x"])).result(WAIT_S).error
    assert "KeyError" in caplog.text
    receiver.sink_of = lambda offer: BufferSink(offer.size)
    assert not sender.submit(outgoing(2, [b"x"])).result(WAIT_S).error


def test_a_keepalive_must_leave_time_for_an_answer():
    with pytest.raises(ValueError, match="at least two pings"):
        Keepalive(ping_s=1.0, silence_s=1.5)
    assert Keepalive().silence_s + Keepalive().tick_s < 3.0


def test_frame_errors_are_value_errors():
    assert issubclass(FrameError, ValueError)


def test_the_package_loads_neither_torch_nor_pickle():
    """Importing the package is cheap, and it imports nothing that could execute bytes of a peer."""
    names = ("send.sender", "receive.receiver", "transports.registry", *(f"transports.{name}" for name in ("tcp", "unix", "shm", "nixl")))
    code = f"import sys, {', '.join(f'abkt.transfer.{name}' for name in names)}; print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert "abkt.transfer.protocol.frame" in loaded
    assert not {"torch", "numpy", "pickle", "abkt.codec", "abkt.kv"} & set(loaded)


# Deadlocks: each side waits for the other while the keepalive goes on


@pytest.mark.parametrize("lost", ["sent", "received"])
def test_a_lost_frame_is_detected_at_the_next_ping(endpoints, caplog, lost):
    """One side counts a frame that the other side does not."""
    receiver = endpoints.receiver(keepalive=Keepalive(ping_s=0.1, silence_s=WAIT_S, hold_s=0.0, resume_s=0.0))
    channel = endpoints.channel(receiver.address, Keepalive(ping_s=0.1, silence_s=WAIT_S))
    offer(channel)
    if lost == "sent":
        channel._frames_sent += 1
        with pytest.raises(PeerError, match=r"PING says that \d+ frames were sent, but \d+ have come"):
            acknowledged(channel)
        assert receiver.aborted()[0].transfer_id == 1
    else:
        channel._frames_received += 1
        with pytest.raises(FrameError, match=r"PING says that \d+ frames were sent, but \d+ have come"):
            acknowledged(channel)


@bare
def test_a_frame_that_trickles_in_counts_as_silence(endpoints):
    receiver = endpoints.receiver(keepalive=SHORT)
    channel = endpoints.channel(receiver.address)
    offer(channel, size=50_000)
    frame = sealed(channel, FrameHeader(DATA, 1, length=50_000), [bytes(50_000)])
    with suppress(PeerLost):
        for byte in frame:
            channel.connection.send([bytes([byte])], nothing)
            time.sleep(0.02)
    received, reason = receiver.aborted()
    assert received.payload_bytes == 0
    assert "has moved only " in reason
    assert reason.endswith(" bytes for 0.8 s in the middle of a frame")

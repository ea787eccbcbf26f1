"""Resuming a transfer after its connection broke, over all transports. Received bytes are not sent again, and none is lost or doubled."""

import os
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abkt.transfer.pieces import BufferSink
from abkt.transfer.protocol.channel import Keepalive
from abkt.transfer.protocol.frame import COMMITTED, HEADER_BYTES, FrameError, FrameHeader, FrameType, digest_of
from abkt.transfer.protocol.messages import Commit, Grant, Offer
from abkt.transfer.receive.leases import COMMITTED_CAP, Leases, TransferIdentity
from abkt.transfer.receive.received import Received
from abkt.transfer.send.outgoing import FRAME_BYTES
from abkt.transfer.transport import PeerError, PeerLost
from tests.transfer.faulty import Fault, Faulty

WAIT_S = 30.0
LASTING = Keepalive(ping_s=1.0, silence_s=20.0, greet_s=20.0, resume_s=20.0, hold_s=20.0)
BRIEF = Keepalive(ping_s=1.0, silence_s=20.0, greet_s=20.0, resume_s=0.0, hold_s=0.3)
INSTANCE = "0a" * 16
DATA, COMMIT, ACK = FrameType.DATA, FrameType.COMMIT, FrameType.ACK
FRAME = FRAME_BYTES[0]


class CountingSink(BufferSink):
    """Records the byte range of each frame that was written."""

    def __init__(self, size):
        super().__init__(size)
        self.written = []

    def buffers(self, start, stop):
        self.written.append((start, stop))
        return super().buffers(start, stop)


def once_broken(endpoints, outgoing, data, faults, **options):
    sink = CountingSink(len(data))
    asked = []
    receiver = endpoints.receiver(keepalive=LASTING, sink_of=lambda offer: asked.append(offer) or sink)
    endpoints.transport = Faulty(endpoints.transport, faults)
    sent = endpoints.sender(receiver.address, keepalive=LASTING, **options).submit(outgoing(1, [data])).result(WAIT_S)
    assert not sent.error
    received = receiver.committed()
    assert received.sink is sink
    assert sink.data == data
    assert receiver.commits.empty()
    assert receiver.aborts.empty()
    return sent, received, sink, asked


@pytest.mark.parametrize("at", [1500, FRAME // 2, 3 * FRAME, 5 * FRAME + 7, 900_000])
def test_after_a_break_only_missing_bytes_are_sent(endpoints, outgoing, at):
    """The first bytes are HELLO and OFFER, so byte `at` is in some DATA frame."""
    data = os.urandom(1_000_000)
    sent, received, sink, asked = once_broken(endpoints, outgoing, data, [Fault("break", at)])
    assert (sent.resumes, sent.retries, sent.payload_bytes) == (1, 0, len(data))
    assert (received.epoch, received.payload_bytes, len(asked)) == (1, len(data), 1)
    twice = sum(stop - start for start, stop in sink.written) - len(data)
    assert twice <= FRAME_BYTES[1]  # at most the frame that broke off
    assert [start for start, _ in sink.written] == sorted(start for start, _ in sink.written)
    assert sent.held_bytes == len(data)


def test_a_small_transfer_survives_a_break_at_any_byte_after_the_hello(endpoints, outgoing):
    """Every 37th byte is tested. A break in HELLO fails the transfer, which has not begun; a break in OFFER, DATA or COMMIT does not."""
    receiver = endpoints.receiver(keepalive=LASTING)
    transport, seen = endpoints.transport, set()
    for at in range(0, 1700, 37):
        endpoints.transport = Faulty(transport, [Fault("break", at)])
        sender = endpoints.sender(receiver.address, keepalive=LASTING)
        sent = sender.submit(outgoing(at, [bytes([at % 256]) * 100])).result(WAIT_S)
        seen.add(bool(sent.error))
        if not sent.error:
            received = receiver.committed()
            assert received.transfer_id == at
            assert received.sink.data == bytes([at % 256]) * 100
        sender.close()
    assert seen == {True, False}
    assert receiver.commits.empty()


@given(st.lists(st.integers(400, 500_000), min_size=1, max_size=4), st.integers(1, 600_000))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_transfer_survives_any_number_of_breaks(endpoints, outgoing, breaks, size):
    transport = endpoints.transport
    data = os.urandom(size)
    receiver = endpoints.receiver(keepalive=LASTING)
    sender = endpoints.sender(receiver.address, keepalive=LASTING)
    assert not sender.submit(outgoing(0, [b"first"])).result(WAIT_S).error  # so that a break in the handshake happens while resuming
    receiver.committed()
    sender._transport = Faulty(transport, [Fault("break", at) for at in breaks])
    sender._channel.connection.abort()
    sent = sender.submit(outgoing(1, [data])).result(WAIT_S)
    if sent.error:
        assert sent.retries == 1  # it was already retried before the grant
    else:
        received = receiver.committed()
        assert received.sink.data == data
        assert received.epoch == sent.resumes + sent.retries + (sender._transport.connections - 1 - sent.resumes)
    assert receiver.commits.empty()
    endpoints.close()


def test_nothing_is_delivered_before_the_commit(endpoints):
    receiver = endpoints.receiver(keepalive=LASTING)
    first = endpoints.channel(receiver.address, instance=INSTANCE)
    assert offer(first) == Grant(100)
    tags = [data(first)]
    first.connection.abort()
    second = endpoints.channel(receiver.address, instance=INSTANCE)
    assert offer(second, epoch=1) == Grant(100, held=50, frames=1)
    assert receiver.commits.empty()
    assert receiver.aborts.empty()
    tags.append(data(second, 1, 50, epoch=1))
    assert acknowledged(second, commit(second, tags, epoch=1)) == 100
    received = receiver.committed()
    assert (received.epoch, received.sink.data) == (1, b"d" * 100)


def offer(channel, epoch=0, transfer_id=1, serial=0, size=100):
    channel.send(FrameHeader(FrameType.OFFER, transfer_id, serial, epoch=epoch), [Offer(1, "raw", 1, (size,)).payload()])
    return Grant.parse(channel.expect(FrameType.GRANT)[1])


def data(channel, sequence=0, offset=0, epoch=0):
    return channel.send(FrameHeader(DATA, 1, sequence, offset, epoch), [b"d" * 50])[1]


def commit(channel, tags, epoch=0):
    channel.send(FrameHeader(COMMIT, 1, len(tags), epoch=epoch), [Commit(0, 50 * len(tags), digest_of(tags).hex()).payload()])


def acknowledged(channel, _=None):
    while True:
        header, _ = channel.expect(ACK)
        if header.flags & COMMITTED:
            return header.offset


def test_a_transfer_is_taken_over_from_a_connection_that_seems_alive(endpoints):
    """The receiver has not noticed the break yet. The thread of the old connection ends before the new one writes."""
    receiver = endpoints.receiver(keepalive=LASTING)
    first = endpoints.channel(receiver.address, instance=INSTANCE)
    offer(first)
    tags = [data(first)]
    second = endpoints.channel(receiver.address, instance=INSTANCE)
    while not offer_held(second, receiver):
        time.sleep(0.01)
    with pytest.raises(PeerLost):
        first.header()
    tags.append(data(second, 1, 50, epoch=1))
    assert acknowledged(second, commit(second, tags, epoch=1)) == 100
    assert receiver.committed().sink.data == b"d" * 100
    assert receiver.aborts.empty()


def offer_held(channel, receiver):
    """Offer again once the first frame has been received, so that the test knows which bytes are held."""
    (lease,) = receiver._leases._leases.values()
    if lease.received is None or lease.received.payload_bytes < 50:
        return False
    assert offer(channel, epoch=1) == Grant(100, held=50, frames=1)
    return True


def test_a_lost_acknowledgement_is_sent_again(endpoints):
    receiver = endpoints.receiver(keepalive=LASTING)
    first = endpoints.channel(receiver.address, instance=INSTANCE)
    offer(first)
    commit(first, [data(first), data(first, 1, 50)])
    receiver.committed()
    first.connection.abort()
    second = endpoints.channel(receiver.address, instance=INSTANCE)
    assert offer(second, epoch=1) == Grant(100, held=100, frames=2, committed=True)
    assert offer(second, serial=1) == Grant(100)  # the next transfer with the same id
    assert receiver.commits.empty()
    assert receiver.aborts.empty()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"epoch": 0}, "was offered with epoch 2 already, now with 0"),
        ({"epoch": 2}, "was offered with epoch 2 already, now with 2"),
        ({"epoch": 3, "size": 99}, "the offer of epoch 3 is not that of epoch 2"),
    ],
)
@pytest.mark.parametrize("state", ["under way", "broken", "committed"])
def test_an_offer_that_is_not_newer_or_differs_is_refused(endpoints, state, change, complaint):
    receiver = endpoints.receiver(keepalive=LASTING)
    first = endpoints.channel(receiver.address, instance=INSTANCE)
    offer(first, epoch=2)
    if state == "committed":
        commit(first, [data(first, epoch=2), data(first, 1, 50, epoch=2)], epoch=2)
        receiver.committed()
    elif state == "broken":
        first.connection.abort()
    second = endpoints.channel(receiver.address, instance=INSTANCE)
    with pytest.raises(PeerError, match=complaint):
        offer(second, **change)
    if state == "under way":
        commit(first, [data(first, epoch=2), data(first, 1, 50, epoch=2)], epoch=2)
        assert acknowledged(first) == 100
        receiver.committed()
    assert receiver.aborts.empty()
    assert receiver.commits.empty()


@pytest.mark.parametrize("other", ["instance", "serial"])
def test_the_same_id_from_another_sender_or_serial_is_another_transfer(endpoints, other):
    receiver = endpoints.receiver(keepalive=LASTING)
    first = endpoints.channel(receiver.address, instance=INSTANCE)
    offer(first)
    data(first)
    second = endpoints.channel(receiver.address, instance=INSTANCE if other == "serial" else "0b" * 16)
    assert offer(second, epoch=1, serial=int(other == "serial")) == Grant(100)


def test_the_memory_of_a_transfer_that_is_not_resumed_is_freed_once(endpoints, caplog):
    receiver = endpoints.receiver(keepalive=BRIEF)
    channel = endpoints.channel(receiver.address, instance=INSTANCE)
    offer(channel)
    data(channel)
    channel.connection.abort()
    received, reason = receiver.aborted()
    assert received.transfer_id == 1
    assert "closed the connection" in reason or "broke" in reason
    assert len(caplog.records) == 1
    assert "is kept for a while" in caplog.records[0].getMessage()
    assert not receiver._leases._leases
    receiver.close()
    endpoints.open.pop(0)
    assert receiver.aborts.empty()


def test_closing_the_receiver_frees_the_memory_of_kept_transfers(endpoints):
    receiver = endpoints.receiver(keepalive=LASTING)
    channel = endpoints.channel(receiver.address, instance=INSTANCE)
    offer(channel)
    channel.connection.abort()
    receiver.close()
    endpoints.open.pop(0)
    assert receiver.aborted()[0].transfer_id == 1
    assert receiver.aborts.empty()


def test_without_an_instance_nothing_is_kept(endpoints):
    receiver = endpoints.receiver(keepalive=LASTING)
    channel = endpoints.channel(receiver.address)
    offer(channel)
    channel.connection.abort()
    assert receiver.aborted()[0].transfer_id == 1


def test_a_restarted_receiver_gets_all_bytes_again(endpoints, outgoing):
    """The receiver restarts at the same address in the middle of the transfer."""
    receiver = endpoints.receiver(keepalive=LASTING)
    closing, again = endpoints.open.pop(), []
    data = os.urandom(1_000_000)
    offered = outgoing(1, [data])

    def restart(now_s, size, duration_s):
        if not again:
            closing()
            again.append(type(receiver)(endpoints.transport, receiver.address, LASTING, key=endpoints.key))
            endpoints.open.append(again[0].close)

    offered.on_sent = restart
    sent = endpoints.sender(receiver.address, keepalive=LASTING).submit(offered).result(WAIT_S)
    assert (sent.error, sent.resumes) == ("", 1)
    assert again[0].committed().sink.data == data
    assert receiver.aborted()[0].transfer_id == 1
    assert sent.wire_bytes > len(data)


def test_a_sender_gives_up_resuming_at_its_time_limit(endpoints, outgoing):
    keepalive = Keepalive(ping_s=1.0, silence_s=20.0, greet_s=20.0, resume_s=0.3, hold_s=0.3)
    receiver = endpoints.receiver(keepalive=keepalive)
    closing = endpoints.open.pop()
    offered = outgoing(1, [bytes(1_000_000)])
    offered.on_sent = lambda now_s, size, duration_s: closing()
    sender = endpoints.sender(receiver.address, keepalive=keepalive)
    sent = sender.submit(offered).result(WAIT_S)
    assert "not resumed within 0.3 s" in sent.error
    assert "cannot connect" in sent.error
    assert sent.resumes == 0


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_cancelling_a_broken_transfer_does_not_wait(endpoints, outgoing, how):
    receiver = endpoints.receiver(keepalive=LASTING)
    closing, begun = endpoints.open.pop(), threading.Event()
    offered = outgoing(1, [bytes(1_000_000)])
    offered.on_sent = lambda now_s, size, duration_s: begun.set() or closing()
    sender = endpoints.sender(receiver.address, keepalive=LASTING)
    future = sender.submit(offered)
    assert begun.wait(WAIT_S)
    offered.cancel.set() if how == "cancel" else sender.close()
    assert future.result(WAIT_S / 2).error in ("cancelled by its sender", "the sender was closed")


def test_a_sender_that_closes_frees_the_memory_at_once(endpoints, outgoing):
    receiver = endpoints.receiver(keepalive=LASTING)
    begun, go_on = threading.Event(), threading.Event()
    offered = outgoing(1, [bytes(1_000_000)], next_cut=lambda *view: begun.set() or go_on.wait(0.05) or 0)
    sender = endpoints.sender(receiver.address, keepalive=LASTING)
    sender.submit(offered)
    assert begun.wait(WAIT_S)
    sender.close()
    reason = receiver.aborts.get(timeout=WAIT_S / 2)[1]
    assert reason == "prefill-0: the sender was closed"


def test_acknowledgements_during_the_transfer_carry_the_price(endpoints, outgoing):
    prices = iter(range(1, 10_000))
    receiver = endpoints.receiver(keepalive=LASTING, price=lambda received_bytes: float(next(prices)))
    sender = endpoints.sender(receiver.address, keepalive=LASTING)
    seen = []
    offered = outgoing(1, [bytes(40 << 20)], on_ack=lambda held_bytes, price: seen.append((held_bytes, price)))
    sent = sender.submit(offered).result(WAIT_S)
    assert not sent.error
    assert len(seen) >= 4
    assert [held for held, _ in seen] == sorted(held for held, _ in seen)
    assert [price for _, price in seen] == [float(n) for n in range(1, 1 + len(seen))]  # the first one came with the grant
    assert (sent.held_bytes, sent.price) == seen[-1]
    assert sent.held_bytes == 40 << 20


def test_an_acknowledgement_of_unsent_bytes_fails_the_transfer(endpoints, outgoing):
    listener = endpoints.listener()
    future = endpoints.sender(listener.address, keepalive=LASTING).submit(outgoing(1, [bytes(100)]))
    channel = endpoints.accepted(listener, LASTING)
    channel.expect(FrameType.OFFER)
    channel.send(FrameHeader(FrameType.GRANT, 1), [Grant(100).payload()])
    header = channel.header()
    channel.payload(header, [memoryview(bytearray(header.length))])
    channel.send(FrameHeader(ACK, 1, offset=101), [bytes(8)])
    assert "ACK of 101 bytes of transfer 1 came, which were not sent" in future.result(WAIT_S).error


@pytest.mark.parametrize("grant", [Grant(100, held=50, frames=1), Grant(100, held=100, frames=1, committed=True)])
def test_a_grant_that_claims_unsent_bytes_fails_the_transfer(endpoints, outgoing, grant):
    listener = endpoints.listener()
    future = endpoints.sender(listener.address, keepalive=LASTING).submit(outgoing(1, [bytes(100)]))
    channel = endpoints.accepted(listener, LASTING)
    channel.expect(FrameType.OFFER)
    channel.send(FrameHeader(FrameType.GRANT, 1), [grant.payload()])
    assert "are held, which were not sent so" in future.result(WAIT_S).error


def test_a_failed_transfer_is_not_retried(endpoints, outgoing):
    receiver = endpoints.receiver(keepalive=LASTING)
    transport = endpoints.transport = Faulty(endpoints.transport, [])
    sender = endpoints.sender(receiver.address, keepalive=LASTING)
    failing = outgoing(1, [bytes(100)], next_cut=lambda *view: 1 // 0)
    assert "ZeroDivisionError" in sender.submit(failing).result(WAIT_S).error
    assert receiver.aborted()[0].transfer_id == 1
    assert transport.connections == 1


def test_a_receiver_remembers_a_limited_number_of_transfers():
    aborted = []
    leases = Leases(LASTING, lambda received, reason: aborted.append(received))
    for serial in range(COMMITTED_CAP + 100):
        lease = leases.enter(TransferIdentity("a", INSTANCE, serial, 1), 0, Offer(1, "raw", 1, (10,)), None)
        lease.received = Received("a", 1, 0, Offer(1, "raw", 1, (10,)), BufferSink(10), 0.0, 0.0)
        leases.commit(lease)
        assert lease.received is None  # the sink is not referenced any more
    assert len(leases._leases) <= COMMITTED_CAP + 1
    leases.close()
    assert not leases._leases
    assert not aborted


def test_taking_over_a_transfer_waits_a_limited_time_for_the_old_connection():
    class StuckConnection:
        def abort(self):
            pass

    leases = Leases(Keepalive(ping_s=0.01, silence_s=0.1), lambda received, reason: None)
    identity, offered = TransferIdentity("a", INSTANCE, 0, 1), Offer(1, "raw", 1, (10,))
    lease = leases.enter(identity, 0, offered, StuckConnection())
    with pytest.raises(FrameError, match="still being written"):
        leases.enter(identity, 1, offered, StuckConnection())
    threading.Timer(0.02, leases.leave, (lease, "gone", True)).start()
    assert leases.enter(identity, 1, offered, StuckConnection()) is not lease  # nothing had been granted


def test_a_keepalive_that_keeps_transfers_shorter_than_it_resumes_is_refused():
    with pytest.raises(ValueError, match="memory held for 1 s must outlast the 2 s of resuming"):
        Keepalive(resume_s=2.0, hold_s=1.0)
    assert HEADER_BYTES == 64

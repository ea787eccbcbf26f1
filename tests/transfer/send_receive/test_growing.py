"""A source that grows while it is sent, over all transports. Available bytes are sent at once, and no other bytes are read."""

import os
import threading
import time

import pytest

from abkt.transfer.pieces import BufferSink
from abkt.transfer.protocol.channel import Keepalive
from abkt.transfer.send.outgoing import FRAME_BYTES
from tests.transfer.faulty import Fault, Faulty

WAIT_S = 30.0
LASTING = Keepalive(ping_s=0.1, silence_s=20.0, greet_s=20.0, resume_s=20.0, hold_s=20.0)
FRAME = FRAME_BYTES[0]


class GrowingSource:
    """A source whose bytes [0, there) may be sent. asked: the argument sent_bytes of each call of `available`."""

    def __init__(self, data):
        self.data, self.there, self.done, self.asked = data, 0, False, []
        self.early = threading.Event()  # set if a byte is read that is not available yet

    @property
    def ends(self):
        return (1, len(self.data) + 1000)  # the final size is not known in advance

    def available(self, now_s, sent_bytes):
        self.asked.append(sent_bytes)
        return self.there, self.done

    def buffers(self, start, stop):
        if stop > self.there:
            self.early.set()
        return [memoryview(self.data)[start:stop]]


def submitted(endpoints, outgoing, receiver, source):
    offered = outgoing(1, [bytes(source.ends[-1])], source.ends)
    offered.source, offered.available = source, source.available
    return endpoints.sender(receiver.address, keepalive=LASTING).submit(offered)


@pytest.mark.parametrize("fault", [None, Fault("break", 2 * FRAME + 7), Fault("break", 5 * FRAME)])
def test_available_bytes_are_sent_until_the_source_ends(endpoints, outgoing, fault):
    source, receiver = GrowingSource(os.urandom(6 * FRAME + 321)), endpoints.receiver(keepalive=LASTING)
    if fault:
        endpoints.transport = Faulty(endpoints.transport, [fault])
    future = submitted(endpoints, outgoing, receiver, source)
    for there in (10, 3 * FRAME, 3 * FRAME + 1, len(source.data)):
        source.there = there
        until_s = time.monotonic() + WAIT_S
        while not source.asked or source.asked[-1] < there:
            assert time.monotonic() < until_s
            time.sleep(0.001)
        assert not future.done()
        assert receiver.commits.empty()
    source.done = True
    sent = future.result(WAIT_S)
    assert (sent.error, sent.payload_bytes, sent.cut) == ("", len(source.data), 0)
    received = receiver.committed()
    assert received.sink.data[: received.payload_bytes] == source.data
    assert not source.early.is_set()


def test_a_source_that_outgrows_its_grant_fails(endpoints, outgoing):
    source = GrowingSource(os.urandom(3000))
    receiver = endpoints.receiver(sink_of=lambda offer: BufferSink(1500))
    future = submitted(endpoints, outgoing, receiver, source)
    source.there = 3000
    assert "granted 1 bytes, but 3000 are to be sent" in future.result(WAIT_S).error
    assert receiver.aborted()


def test_a_source_that_does_not_grow_can_be_cancelled(endpoints, outgoing):
    source, receiver = GrowingSource(bytes(100)), endpoints.receiver(keepalive=LASTING)
    offered = outgoing(1, [bytes(source.ends[-1])], source.ends)
    offered.source, offered.available = source, source.available
    future = endpoints.sender(receiver.address, keepalive=LASTING).submit(offered)
    while not source.asked:
        time.sleep(0.001)
    offered.cancel.set()
    assert "cancelled" in future.result(WAIT_S).error
    assert receiver.aborted()

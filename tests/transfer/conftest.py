"""Real loopback sockets, a receiving desk that writes down what happens, and a clock that only sleeping moves."""

import queue
import threading

import pytest

from abkt.transfer.pieces import BufferSink, PiecesSource
from abkt.transfer.protocol.channel import Channel, Keepalive
from abkt.transfer.protocol.handshake import greet, welcome
from abkt.transfer.protocol.key import Key
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.receive.receiver import Receiver
from abkt.transfer.send.outgoing import Outgoing
from abkt.transfer.send.sender import Sender
from tests.transfer.backends import BACKENDS, BARE

KEYS = {"": None, "keyed": Key(b"k" * 32), "encrypted": Key(b"e" * 40, encrypt=True)}
HOUSES = [*BARE, "tcp-keyed", "shm-encrypted"]
PATIENT = Keepalive(ping_s=1.0, silence_s=20.0, greet_s=20.0, resume_s=0.5, hold_s=1.0)  # a slow machine is no fault
WAIT_S = 30.0
LAYOUT = "model of the tests, 2 layers"


class Clock:
    def __init__(self, now_s=0.0):
        self.now_s = now_s

    def __call__(self):
        return self.now_s

    def sleep(self, duration_s):
        assert duration_s > 0
        self.now_s += duration_s


class Desk:
    """A receiving node. By default it takes every offer into a new buffer; what comes of it stands in two queues."""

    def __init__(self, transport, address, keepalive=PATIENT, sink_of=lambda offer: BufferSink(offer.size), **options):
        self.sink_of = sink_of
        self.commits, self.aborts = queue.Queue(), queue.Queue()
        self.receiver = Receiver(
            transport,
            address,
            Hello("decode-0", LAYOUT),
            lambda peer, offer: self.sink_of(offer),
            self.commits.put,
            lambda received, reason: self.aborts.put((received, reason)),
            keepalive,
            **options,
        )
        self.address = self.receiver.address

    def committed(self):
        return self.commits.get(timeout=WAIT_S)

    def aborted(self):
        return self.aborts.get(timeout=WAIT_S)


class House:
    """Makes nodes on one backend, with one key or none, and closes them all at the end."""

    def __init__(self, name, path):
        backend, _, key = name.partition("-")
        kind, self.address_in = BACKENDS[backend]
        self.key, self.socket = KEYS[key], backend in ("tcp", "unix")
        self.transport, self.path, self.open = kind(), path, []
        self.count = 0

    def desk(self, **options):
        self.count += 1
        path = self.path / str(self.count)
        path.mkdir()
        desk = Desk(self.transport, self.address_in(path), **{"key": self.key} | options)
        self.open.append(desk.receiver.close)
        return desk

    def sender(self, address, link=None, keepalive=PATIENT, layout=LAYOUT):
        sender = Sender(self.transport, address, Hello("prefill-0", layout), link, keepalive, key=self.key)
        self.open.append(sender.close)
        return sender

    def channel(self, address, keepalive=PATIENT, greeted=True, **hello):
        """A peer that speaks frame by frame, for what no sender would say."""
        channel = Channel(self.transport.connect(address, keepalive.silence_s), keepalive)
        self.open.append(channel.connection.close)
        if greeted:
            greet(channel, Hello("odd-peer", LAYOUT, **hello), self.key)
        return channel

    def listener(self):
        listener = self.transport.listen(self.address_in(self.path), WAIT_S)
        self.open.append(listener.close)
        return listener

    def answered(self, listener, keepalive=PATIENT):
        """A receiver that speaks frame by frame, once it has been greeted."""
        channel = Channel(listener.accept(WAIT_S), keepalive)
        self.open.append(channel.connection.close)
        welcome(channel, Hello("odd-receiver", LAYOUT), self.key)
        return channel

    def close(self):
        while self.open:
            self.open.pop()()


@pytest.fixture(params=HOUSES)
def house(request, tmp_path):
    before = set(threading.enumerate())
    try:
        house = House(request.param, tmp_path)
    except ValueError as missing:  # a library or a device, which this machine need not have
        pytest.skip(str(missing))
    yield house
    house.close()
    assert not [thread.name for thread in threading.enumerate() if thread not in before], "threads outlived close()"


@pytest.fixture
def ends_of(tmp_path):
    """ends_of(transport): two connections, of each other; the second is the one that was connected to."""
    opened = []

    def make(transport, silence_s=WAIT_S):
        listener = transport.listen(str(tmp_path / "socket"), silence_s)
        there = transport.connect(listener.address, silence_s)
        here = listener.accept(WAIT_S)
        listener.close()
        opened.extend([here, there])
        return there, here

    yield make
    for connection in opened:
        connection.close()


@pytest.fixture(scope="session")
def fake_clock():
    return Clock


@pytest.fixture(scope="session")
def outgoing():
    """outgoing(transfer_id, pieces, ends=…, **options) of one raw transfer, or a stream if it has ends."""

    def make(transfer_id, pieces, ends=(), more=None, **options):
        source = PiecesSource(pieces, ends)
        offer = Offer(transfer_id, "stream" if ends else "raw", 16, source.ends, more=more or {})
        return Outgoing(transfer_id, offer, source, **options)

    return make

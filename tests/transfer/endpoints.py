"""Senders, receivers and bare channels over one transport, for the tests: real loopback sockets, all closed at the end of a test."""

import queue

from abkt.transfer.pieces import BufferSink
from abkt.transfer.protocol.channel import Channel, Keepalive
from abkt.transfer.protocol.handshake import client_handshake, server_handshake
from abkt.transfer.protocol.key import Key
from abkt.transfer.protocol.messages import Hello
from abkt.transfer.receive.receiver import Receiver
from abkt.transfer.send.sender import Sender
from tests.transfer.backends import BACKENDS, BARE

KEYS = {"": None, "keyed": Key(b"k" * 32), "encrypted": Key(b"e" * 40, encrypt=True)}
CASES = [*BARE, "tcp-keyed", "shm-encrypted"]
PATIENT = Keepalive(ping_s=1.0, silence_s=20.0, greet_s=20.0, resume_s=0.5, hold_s=1.0)  # so that a slow machine causes no timeout
WAIT_S = 30.0
LAYOUT = "model of the tests, 2 layers"


class RecordingReceiver(Receiver):
    """A receiver that records its committed and aborted transfers in queues. By default it accepts every offer into a new buffer."""

    def __init__(self, transport, address, keepalive=PATIENT, sink_of=lambda offer: BufferSink(offer.size), **options):
        self.sink_of = sink_of
        self.commits, self.aborts = queue.Queue(), queue.Queue()
        super().__init__(
            transport,
            address,
            Hello("decode-0", LAYOUT),
            lambda peer, offer: self.sink_of(offer),
            self.commits.put,
            lambda received, reason: self.aborts.put((received, reason)),
            keepalive,
            **options,
        )

    def committed(self):
        return self.commits.get(timeout=WAIT_S)

    def aborted(self):
        return self.aborts.get(timeout=WAIT_S)


class Endpoints:
    """Makes senders and receivers over one transport, with one key or none. name: as in CASES."""

    def __init__(self, name, path):
        backend, _, key = name.partition("-")
        kind, self.address_in = BACKENDS[backend]
        self.key, self.socket = KEYS[key], backend in ("tcp", "unix")
        self.transport, self.path, self.open = kind(), path, []
        self.count = 0

    def receiver(self, **options):
        self.count += 1
        path = self.path / str(self.count)
        path.mkdir()
        receiver = RecordingReceiver(self.transport, self.address_in(path), **{"key": self.key} | options)
        self.open.append(receiver.close)
        return receiver

    def sender(self, address, link=None, keepalive=PATIENT, layout=LAYOUT):
        sender = Sender(self.transport, address, Hello("prefill-0", layout), link, keepalive, key=self.key)
        self.open.append(sender.close)
        return sender

    def channel(self, address, keepalive=PATIENT, handshake=True, **hello):
        """A connecting peer that the test drives frame by frame, to send frames that no Sender would send."""
        channel = Channel(self.transport.connect(address, keepalive.silence_s), keepalive)
        self.open.append(channel.connection.close)
        if handshake:
            client_handshake(channel, Hello("odd-peer", LAYOUT, **hello), self.key)
        return channel

    def listener(self):
        listener = self.transport.listen(self.address_in(self.path), WAIT_S)
        self.open.append(listener.close)
        return listener

    def accepted(self, listener, keepalive=PATIENT):
        """A receiving peer that the test drives frame by frame, after the handshake."""
        channel = Channel(listener.accept(WAIT_S), keepalive)
        self.open.append(channel.connection.close)
        server_handshake(channel, Hello("odd-receiver", LAYOUT), self.key)
        return channel

    def close(self):
        while self.open:
            self.open.pop()()

"""The time that a frame takes on a link paced by the kernel. Real loopback sockets and real time, with wide tolerances."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from abkt.transfer.buffers import Buffer
from abkt.transfer.pieces import PiecesSource
from abkt.transfer.protocol.messages import Offer
from abkt.transfer.send.outgoing import Outgoing
from abkt.transfer.transport import PeerLost, PeerSilent
from abkt.transfer.transports.kernel_paced import KernelPaced, KernelPacedConnection
from abkt.transfer.transports.tcp import Tcp
from tests.transfer.endpoints import Endpoints

FRAME = bytes(64 << 10)


class ReadingPeer:
    """Reads frames as fast as they come, or not at all. times_s: when each frame was read."""

    def __init__(self, transport: KernelPaced, reads: bool = True, silence_s: float = 20.0) -> None:
        self.listener = Tcp().listen("127.0.0.1:0", silence_s)
        self.connection = transport.connect(self.listener.address, silence_s)
        accepted = self.listener.accept(10.0)
        assert accepted is not None
        self.far = accepted
        self.times_s: list[float] = []
        self._thread = threading.Thread(target=self._read if reads else lambda: None)
        self._thread.start()

    def send(self, frames: int) -> float:
        """Send the frames; returns the seconds that this took."""
        begun_s = time.monotonic()
        for _ in range(frames):
            assert self.connection.send([FRAME], lambda: None) >= 1
        return time.monotonic() - begun_s

    def close(self) -> None:
        self.far.abort()
        self._thread.join()
        for end in (self.connection, self.far, self.listener):
            end.close()

    def _read(self) -> None:
        buffer = [memoryview(bytearray(len(FRAME)))]
        try:
            while True:
                self.far.receive(buffer, lambda: None)
                self.times_s.append(time.monotonic())
        except PeerLost:
            pass


@pytest.fixture
def transport() -> Iterator[KernelPaced]:
    paced = KernelPaced()
    yield paced
    assert not paced._connections, "a connection was not forgotten"


class SlowToReturn(KernelPacedConnection):
    """Its send returns only when the peer may have acknowledged the frame; then it calls on_wait once more, as it does while the kernel's
    queue is not empty."""

    def send(self, buffers: Sequence[Buffer], on_wait: Callable[[], None]) -> int:
        calls = super().send(buffers, on_wait)
        self.readable(0.2)
        on_wait()
        return calls


def test_an_acknowledgement_may_come_before_the_send_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abkt.transfer.transports.kernel_paced.KernelPacedConnection", SlowToReturn)
    data = random.Random(1).randbytes(12 * len(FRAME))
    endpoints = Endpoints("tcp", tmp_path)
    endpoints.transport = KernelPaced()
    try:
        receiver = endpoints.receiver()
        outgoing = Outgoing(1, Offer(1, "raw", 10, (len(data),)), PiecesSource([memoryview(data)]))
        sent = endpoints.sender(receiver.address).submit(outgoing).result(30.0)
        assert sent.error == ""
        assert bytes(receiver.committed().sink.data) == data
    finally:
        endpoints.close()


@pytest.mark.slow
def test_every_frame_takes_the_time_of_the_link(transport: KernelPaced) -> None:
    """At 4 MB/s a frame takes 16 ms. Two segments may be left unsent, and the kernel paces in steps of a millisecond or a few segments."""
    transport.pace(4e6)
    peer = ReadingPeer(transport)
    first_s, rest_s = peer.send(1), peer.send(20)
    peer.close()
    assert first_s > 0.5 * len(FRAME) / 4e6
    assert rest_s == pytest.approx(20 * len(FRAME) / 4e6, rel=0.15)
    assert peer.times_s[19] - peer.times_s[0] == pytest.approx(19 * len(FRAME) / 4e6, rel=0.15)


@pytest.mark.slow
def test_the_rate_of_an_open_connection_may_change(transport: KernelPaced) -> None:
    transport.pace(16e6)
    peer = ReadingPeer(transport)
    fast_s = peer.send(20)
    transport.pace(4e6)
    peer.send(2)
    slow_s = peer.send(10)
    transport.pace(16e6)
    peer.send(2)
    again_s = peer.send(20)
    peer.close()
    assert slow_s == pytest.approx(10 * len(FRAME) / 4e6, rel=0.2)
    assert max(fast_s, again_s) < 1.5 * 20 * len(FRAME) / 16e6 + 0.05


def test_a_peer_that_reads_nothing_counts_as_silent(transport: KernelPaced) -> None:
    """The receive window fills, and the rest stays queued in this kernel."""
    peer = ReadingPeer(transport, reads=False, silence_s=0.4)
    waited: list[float] = []
    with pytest.raises(PeerSilent, match="has moved no byte"):
        peer.connection.send([bytes(32 << 20)], lambda: waited.append(time.monotonic()))
    peer.close()
    assert waited


def test_on_wait_can_end_a_send(transport: KernelPaced) -> None:
    """In on_wait the sender reads its peer's frames while its own bytes are in the kernel's queue."""
    transport.pace(1e5)
    peer = ReadingPeer(transport)

    def stop() -> None:
        raise PeerLost("aborted")

    with pytest.raises(PeerLost, match="aborted"):
        peer.connection.send([FRAME], stop)
    peer.close()


def test_only_loopback_addresses_are_allowed_without_a_key(transport: KernelPaced) -> None:
    with pytest.raises(ValueError, match="needs a key"):
        transport.connect("192.0.2.1:9", 0.1)
    with pytest.raises(PeerLost, match="cannot connect"):
        transport.connect("127.0.0.1:1", 0.5)


def test_a_small_message_is_not_waited_for(transport: KernelPaced) -> None:
    transport.pace(1e3)
    peer = ReadingPeer(transport)
    assert isinstance(peer.connection, KernelPacedConnection)
    begun_s = time.monotonic()
    peer.connection.send([b"x" * 64], lambda: None)
    assert time.monotonic() - begun_s < 10
    peer.close()

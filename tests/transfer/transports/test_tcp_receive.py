"""A TCP receiver is woken by as much of a payload as it reads at once, and by the first byte of the next frame."""

import os
import socket
import threading
import time

import pytest

from abkt.transfer.transport import PeerLost, PeerSilent
from abkt.transfer.transports.tcp import AWAITED_BYTES, TcpConnection

SILENCE_S = 20.0
WAIT_S = 30.0
SIZE = 3 * AWAITED_BYTES[1] + 12345


@pytest.fixture
def pair():
    """Yields a receiving connection and the plain socket of its peer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = socket.create_connection(listening.getsockname())
        connected, _ = listening.accept()
    connection = TcpConnection(connected, "peer", SILENCE_S)
    yield connection, peer
    peer.close()
    connection.close()


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def scattered(size, piece):
    memory = bytearray(size)
    view = memoryview(memory)
    return memory, [view[start : start + piece] for start in range(0, size, piece)]


@pytest.mark.parametrize("step", [1 << 20, 70_000, 3_000])
@pytest.mark.parametrize("piece", [SIZE, 100_001, 900])  # 900: more pieces than one call takes
def test_a_payload_arrives_complete_however_it_is_sent(pair, step, piece):
    connection, peer = pair
    payload = os.urandom(SIZE)
    thread = in_thread(lambda: [peer.sendall(payload[start : start + step]) for start in range(0, SIZE, step)])
    memory, buffers = scattered(SIZE, piece)
    connection.receive(buffers, lambda: None)
    thread.join(WAIT_S)
    assert memory == payload
    assert not connection.readable(0)


def test_slow_data_is_read_as_it_comes(pair):
    connection, peer = pair
    payload, wakes = os.urandom(AWAITED_BYTES[0]), []

    def send_slowly():
        for start in range(0, len(payload), len(payload) // 4):
            peer.sendall(payload[start : start + len(payload) // 4])
            time.sleep(0.6)  # longer than a tick

    thread = in_thread(send_slowly)
    memory, buffers = scattered(len(payload), len(payload))
    connection.receive(buffers, lambda: wakes.append(memory.count(0)))
    thread.join(WAIT_S)
    assert memory == payload
    assert len(set(wakes)) >= 4  # it was read in parts, not left in the kernel until all was there


def test_a_single_byte_wakes_the_receiver_after_a_payload(pair):
    connection, peer = pair
    payload = os.urandom(SIZE)
    thread = in_thread(lambda: peer.sendall(payload))
    time.sleep(0.1)
    connection.receive(scattered(SIZE, SIZE)[1], lambda: None)
    thread.join(WAIT_S)
    assert connection._awaited_bytes > 1, "the threshold was never raised, so this test checks nothing"
    peer.sendall(b"x")
    assert connection.readable(WAIT_S)
    connection.receive(scattered(1, 1)[1], lambda: None)
    assert not connection.readable(0)


def test_a_receiver_wakes_less_often_than_segments_arrive(pair):
    """The peer sends 256 segments, more slowly than they are read."""
    connection, peer = pair
    payload = os.urandom(4 * AWAITED_BYTES[1])
    segment = len(payload) // 256
    parts = [payload[start : start + segment] for start in range(0, len(payload), segment)]
    thread = in_thread(lambda: [(peer.sendall(part), time.sleep(1e-4)) for part in parts])
    wakes = []
    memory, buffers = scattered(len(payload), len(payload))
    connection.receive(buffers, lambda: wakes.append(1))
    thread.join(WAIT_S)
    assert memory == payload
    assert len(wakes) < 128


@pytest.mark.parametrize("end", ["close", "reset", "abort"])
def test_the_end_of_the_connection_within_a_payload_is_detected_at_once(pair, end):
    connection, peer = pair
    peer.sendall(bytes(100_000))

    def stop():
        time.sleep(0.3)
        if end == "abort":
            connection.abort()
            return
        if end == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()

    thread, begun_s = in_thread(stop), time.monotonic()
    with pytest.raises(PeerLost):
        connection.receive(scattered(SIZE, SIZE)[1], lambda: None)
    assert time.monotonic() - begun_s < SILENCE_S / 2
    thread.join(WAIT_S)


def test_silence_within_a_payload_is_detected():
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as peer:
        connection = TcpConnection(listening.accept()[0], "peer", 0.4)
        peer.sendall(bytes(100_000))
        with pytest.raises(PeerSilent, match="in the middle of a frame"):
            connection.receive(scattered(SIZE, SIZE)[1], lambda: None)
        connection.close()

"""Shared-memory rings: bytes arrive in order, and a peer that breaks the protocol ends the connection."""

import fcntl
import os
import random
import socket
import struct
import threading
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abkt.transfer.transport import PeerLost, PeerSilent
from abkt.transfer.transports.shm import GREETING, RING_BYTES, SEALS, Shm

WAIT_S = 30.0


def nothing():
    pass


@pytest.fixture
def ends(ends_of):
    return partial(ends_of, Shm())


@given(st.lists(st.lists(st.integers(0, 3 * RING_BYTES // 2), max_size=4), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_pass_the_ring_in_order(ends, sends, seed):
    """This holds for any pieces on either side, and in both directions at once."""
    dice = random.Random(seed)
    there, here = ends()
    said = [[dice.randbytes(size) for size in sizes] for sizes in sends]
    whole = b"".join(b"".join(pieces) for pieces in said)
    got = bytearray(len(whole))

    def echo():
        view, start = memoryview(got), 0
        while start < len(whole):
            stop = start + dice.randint(1, RING_BYTES)
            here.receive([view[start : start + 7], view[start + 7 : stop]], nothing)
            start = stop
        here.send([got], nothing)

    thread = threading.Thread(target=echo)
    thread.start()
    for pieces in said:
        there.send(pieces, nothing)
    back = bytearray(len(whole))
    there.receive([memoryview(back)], nothing)
    thread.join(WAIT_S)
    assert got == back == whole


def test_bytes_in_the_ring_can_be_read_after_the_peer_has_gone(ends):
    there, here = ends()
    there.send([b"last words"], nothing)
    there.abort()
    got = bytearray(10)
    assert here.readable(WAIT_S)
    here.receive([memoryview(got)], nothing)
    assert got == b"last words"
    with pytest.raises(PeerLost, match="closed the connection"):
        here.receive([memoryview(got)], nothing)
    with pytest.raises(PeerLost):
        here.send([bytes(2 * RING_BYTES)], nothing)


def test_a_full_ring_waits_until_the_silence_limit(ends):
    there, here = ends(silence_s=0.2)
    with pytest.raises(PeerSilent, match=r"moved no byte for 0\.2 s"):
        there.send([bytes(RING_BYTES + 1)], nothing)
    with pytest.raises(PeerSilent, match=r"moved no byte for 0\.2 s"):
        here.receive([memoryview(bytearray(RING_BYTES + 1))], nothing)


def test_unread_counts_block_neither_side(ends):
    """Each side fills the other's socket with counts of single bytes. Then both sides read."""
    there, here = ends()
    done = []

    def work(connection):
        for _ in range(5000):
            connection.send([b"x"], nothing)
        got = bytearray(5000)
        connection.receive([memoryview(got)], nothing)
        done.append(bytes(got))

    here.readable(0)
    threads = [threading.Thread(target=work, args=(connection,)) for connection in (there, here)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert done == [b"x" * 5000] * 2


def memory(size=2 * RING_BYTES, seals=SEALS):
    made = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(made, size)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)
    return made


@pytest.mark.parametrize(
    ("greeting", "memories", "complaint"),
    [
        (b"GET / HT", [], "does not speak this protocol"),
        (GREETING, [], "does not speak this protocol"),
        (GREETING[:5], [memory], "does not speak this protocol"),
        (GREETING, [lambda: memory(size=RING_BYTES)], "of another size, or could be changed in size"),
        (GREETING, [lambda: memory(seals=fcntl.F_SEAL_GROW)], "could be changed in size"),
        (GREETING, [lambda: os.open(os.devnull, os.O_RDWR)], "gave memory that cannot be used"),
        (GREETING, [memory, memory], ""),  # the extra descriptor is closed
    ],
)
def test_an_invalid_shm_greeting_is_refused(tmp_path, greeting, memories, complaint):
    before = len(os.listdir("/proc/self/fd"))
    listener = Shm().listen(str(tmp_path / "socket"), WAIT_S)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.address)
        given_away = [make() for make in memories]
        socket.send_fds(client, [greeting], given_away)
        for number in given_away:
            os.close(number)
        here = listener.accept(WAIT_S)
        if complaint:
            with pytest.raises(PeerLost, match=complaint):
                here.receive([memoryview(bytearray(1))], nothing)
        else:
            assert not here.readable(0)
        here.close()
    listener.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("counts", [[RING_BYTES + 1], [RING_BYTES, 1], [-1], [1, -1], [2**31 - 1] * 10])
def test_counts_beyond_the_ring_end_the_connection(tmp_path, counts):
    listener = Shm().listen(str(tmp_path / "socket"), WAIT_S)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.address)
        made = memory()
        socket.send_fds(client, [GREETING], [made])
        os.close(made)
        here = listener.accept(WAIT_S)
        client.send(b"".join(struct.pack("<i", count) for count in counts))
        here.readable(0)
        with pytest.raises(PeerLost, match="counted more bytes than its ring holds"):
            here.receive([memoryview(bytearray(2 * RING_BYTES))], nothing)
        here.close()
    listener.close()

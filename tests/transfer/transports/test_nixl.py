"""NIXL: it opens no port, refuses invalid peers, works without direct access to the peer's memory, and leaves nothing behind."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from abkt.transfer.transport import PeerLost, PeerSilent
from abkt.transfer.transports import nixl
from abkt.transfer.transports.nixl import GREETING, MAGIC, METADATA_CAP_BYTES, RING_BYTES, Nixl

pytestmark = pytest.mark.skipif(find_spec("nixl") is None, reason="NIXL is not installed: pip install 'abkt[nixl]'")
WAIT_S = 30.0
NO_CMA = {"UCX_TLS": "posix,self"}  # no direct copy into the peer's memory: the peer has to make progress calls


def nothing():
    pass


def pair(path, silence_s=WAIT_S):
    listener = Nixl().listen(str(path / "socket"), silence_s)
    there = Nixl().connect(listener.address, silence_s)
    here = listener.accept(WAIT_S)
    listener.close()
    return there, here


@pytest.fixture
def ends(ends_of):
    return lambda silence_s=WAIT_S: ends_of(Nixl(), silence_s)


def listening():
    """Inodes of the TCP and UDP sockets of this process at which other processes can reach it."""
    reachable = set()
    for name, states in (("tcp", {"0A"}), ("tcp6", {"0A"}), ("udp", {"07"}), ("udp6", {"07"})):
        with suppress(FileNotFoundError):
            rows = [line.split() for line in Path("/proc/self/net", name).read_text().splitlines()[1:]]
            reachable |= {row[9] for row in rows if row[3] in states}
    held = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            held.add(os.readlink(f"/proc/self/fd/{number}"))
    return {inode for inode in reachable if f"socket:[{inode}]" in held}


def exchange(there, here, size, seed=1):
    """Send bytes there and back, in pieces larger than the ring."""
    dice = random.Random(seed)
    data, echoed, back = dice.randbytes(size), bytearray(size), bytearray(size)

    def echo():
        start = 0
        while start < size:
            stop = min(size, start + dice.randint(1, 2 * RING_BYTES))
            here.receive([memoryview(echoed)[start:stop]], nothing)
            start = stop
        here.send([echoed], nothing)

    thread = threading.Thread(target=echo)
    thread.start()
    there.send([data[: size // 3], data[size // 3 :]], nothing)
    there.receive([memoryview(back)], nothing)
    thread.join(WAIT_S)
    assert echoed == back == data


@pytest.mark.parametrize("lanes", [nixl.UCX_SETTINGS, NO_CMA], ids=["cma", "no cma"])
def test_bytes_go_there_and_back_and_no_port_is_opened(ends, monkeypatch, lanes):
    monkeypatch.setattr(nixl, "UCX_SETTINGS", lanes)
    before = listening()
    there, here = ends()
    exchange(there, here, 3 * RING_BYTES + 12_345)
    assert listening() == before
    assert "UCX_TLS" not in os.environ


def test_the_check_for_open_ports_finds_an_open_port():
    before = listening()
    with socket.create_server(("127.0.0.1", 0)):
        assert len(listening() - before) == 1


@pytest.mark.parametrize(
    ("greeting", "complaint"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "does not speak this protocol"),
        (GREETING.pack(b"ABKTother", 100, 0)[: GREETING.size], "does not speak this protocol"),
        (GREETING.pack(MAGIC, METADATA_CAP_BYTES + 1, 0), "does not speak this protocol"),
        (GREETING.pack(MAGIC, 0, 0), "does not speak this protocol"),
        (GREETING.pack(MAGIC, 5, 0) + b"stuff", "gave metadata that cannot be used"),
        (GREETING.pack(MAGIC, 5, 0) + b"stu", "closed the connection"),
        (MAGIC, "closed the connection"),
    ],
)
def test_an_invalid_nixl_greeting_is_refused(tmp_path, greeting, complaint):
    listener = Nixl().listen(str(tmp_path / "socket"), WAIT_S)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.address)
        client.sendall(greeting)
        client.shutdown(socket.SHUT_WR)
        here = listener.accept(WAIT_S)
        with pytest.raises(PeerLost, match=complaint):
            here.receive([memoryview(bytearray(1))], nothing)
        here.close()
    listener.close()


def test_another_users_process_is_refused(tmp_path, monkeypatch):
    """The receiver reads none of that process's metadata and sends nothing to it."""
    listener = Nixl().listen(str(tmp_path / "socket"), WAIT_S)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.address)
        client.sendall(GREETING.pack(MAGIC, 5, 0) + b"stuff")
        here = listener.accept(WAIT_S)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(PeerLost, match=f"is a process of user {os.getuid()}, not of this one"):
            here.receive([memoryview(bytearray(1))], nothing)
        here.close()
        assert client.recv(1) == b""
        with pytest.raises(PeerLost, match="is a process of user"):
            Nixl().connect(listener.address, WAIT_S)
    listener.close()


@pytest.mark.parametrize("lanes", [nixl.UCX_SETTINGS, NO_CMA], ids=["cma", "no cma"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_peer_that_dies_or_stops_ends_a_pending_write(tmp_path, monkeypatch, lanes, how):
    """Without this check UCX would wait forever."""
    monkeypatch.setattr(nixl, "UCX_SETTINGS", lanes)
    code = f"""
from abkt.transfer.transports import nixl
nixl.UCX_SETTINGS = {lanes!r}
there = nixl.Nixl().connect({str(tmp_path / "socket")!r}, 30.0)
got = bytearray(1 << 20)
while True:
    there.receive([memoryview(got)], lambda: None)
    print("got", flush=True)
"""
    listener = Nixl().listen(str(tmp_path / "socket"), 2.0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        here = listener.accept(WAIT_S)
        here.send([bytes(16 << 20)], nothing)
        assert process.stdout.readline() == b"got\n"
        process.send_signal(how)
        with pytest.raises(PeerSilent if how == signal.SIGSTOP else PeerLost, match=r"moved no byte for 2 s|closed|broke"):
            here.send([bytes(256 << 20)], nothing)
        here.close()
        process.kill()
        process.wait(WAIT_S)
    listener.close()


def test_an_abort_ends_a_write_that_makes_no_progress(ends, monkeypatch):
    monkeypatch.setattr(nixl, "UCX_SETTINGS", NO_CMA)
    there, here = ends()
    ended = []

    def send():
        with pytest.raises(PeerLost):
            there.send([bytes(4 * RING_BYTES)], nothing)
        ended.append(True)

    thread = threading.Thread(target=send)
    thread.start()
    here.readable(0)  # reads the greeting, and then makes no progress calls
    time.sleep(0.2)
    assert not ended
    there.abort()
    thread.join(WAIT_S)
    assert ended


def test_nothing_is_left_of_closed_connections(tmp_path):
    def held():
        maps = Path("/proc/self/maps").read_text().count("\n")
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), maps

    counts = []
    for number in range(12):
        path = tmp_path / str(number)
        path.mkdir()
        there, here = pair(path)
        exchange(there, here, 1000)
        there.close()
        here.close()
        counts.append(held())
    assert counts[-1][:2] == counts[2][:2]
    assert counts[-1][2] - counts[2][2] < 9  # fewer than one mapping for each of 9 connections

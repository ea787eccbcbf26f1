"""NCCL's transport over its stand-in, gloo: it receives what its ring has room for, waits for nobody for ever, and leaves nothing."""

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading

import pytest
import torch

from abkt.transfer.transport import PeerLost, PeerSilent
from abkt.transfer.transports.groups import RING_BYTES
from abkt.transfer.transports.nccl import GREETING, MAGIC, Gloo, Nccl

WAIT_S = 30.0


def nothing():
    pass


def pair(path, silence_s=WAIT_S):
    """Two ends that have met: each must be used meanwhile, as both sides make their groups at once."""
    listener = Gloo().listen(str(path / "socket"), silence_s)
    there = Gloo().connect(listener.address, silence_s)
    here = listener.accept(WAIT_S)
    listener.close()
    thread = threading.Thread(target=here.send, args=([b"x"], nothing))
    thread.start()
    there.receive([memoryview(bytearray(1))], nothing)
    thread.join(WAIT_S)
    return there, here


def test_bytes_go_round_the_ring_whether_short_or_long(tmp_path):
    dice = random.Random(2)
    data = dice.randbytes(3 * RING_BYTES)
    cuts = sorted([*dice.choices(range(len(data)), k=9), 100, 4196, 8293, len(data)])  # 4096 bytes, and one more
    there, here = pair(tmp_path)
    got, start = bytearray(len(data)), 0
    thread = threading.Thread(target=lambda: here.receive([memoryview(got)], nothing))
    thread.start()
    for stop in cuts:
        there.send([data[start:stop]], nothing)
        start = stop
    thread.join(WAIT_S)
    there.close()
    here.close()
    assert got == data


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nccl_is_refused_in_one_line():
    with pytest.raises(ValueError, match="carrier nccl needs a CUDA device for each of its two sides; there is none here"):
        Nccl()


@pytest.mark.parametrize(
    ("greeting", "complaint"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "does not speak this protocol"),
        (GREETING.pack(MAGIC, b"gloo", bytes(16), 0), "does not speak this protocol"),
        (GREETING.pack(MAGIC, b"nccl", bytes(16), 80), "does not speak gloo"),
        (GREETING.pack(MAGIC, b"gloo", bytes(16), 80)[:-1], "closed the connection"),
        (GREETING.pack(MAGIC, b"gloo", bytes(16), 1), r"could not be met by gloo|moved no byte for 1 s"),
    ],
)
def test_a_stranger_is_not_believed(tmp_path, greeting, complaint):
    listener = Gloo().listen(str(tmp_path / "socket"), 1.0)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(listener.address)
        stranger.sendall(greeting)
        stranger.shutdown(socket.SHUT_WR)
        here = listener.accept(WAIT_S)
        with pytest.raises((PeerLost, PeerSilent), match=complaint):
            here.receive([memoryview(bytearray(1))], nothing)
        here.close()
    listener.close()


@pytest.mark.parametrize("counts", [[RING_BYTES + 1], [0, 0], [-1], [2**31 - 1], [RING_BYTES - 5000, 6000]])
def test_counts_beyond_the_ring_end_the_connection(tmp_path, counts):
    there, here = pair(tmp_path, silence_s=1.0)
    there._socket.send(struct.pack(f"<{len(counts)}i", *counts))
    while here.readable(0.2) and not here._end:
        here._listen()
    if counts == [0, 0]:  # says nothing, and does nothing
        assert not here._end
    else:
        assert "counted more bytes than its ring holds" in here._end
    there.close()
    here.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_peer_that_dies_or_stops_ends_what_waits_for_it(tmp_path, how):
    """It has told of bytes of which none will come: gloo would wait for 30 minutes."""
    code = f"""
from abkt.transfer.transports.nccl import Gloo
there = Gloo().connect({str(tmp_path / "socket")!r}, 30.0)
there.receive([memoryview(bytearray(1))], lambda: None)
there._group_rings.written = lambda: None
there._tell_put(1 << 20)
print("told", flush=True)
there.receive([memoryview(bytearray(1))], lambda: None)
"""
    listener = Gloo().listen(str(tmp_path / "socket"), 2.0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        here = listener.accept(WAIT_S)
        while not here.readable(0.1) and not here._rings:
            pass
        here.send([b"x"], nothing)
        assert process.stdout.readline() == b"told\n"
        process.send_signal(how)
        expected = (PeerSilent, "moved no byte for 2 s") if how == signal.SIGSTOP else (PeerLost, "closed|broke")
        with pytest.raises(expected[0], match=expected[1]):
            here.receive([memoryview(bytearray(1 << 20))], nothing)
        here.close()
        process.kill()
        process.wait(WAIT_S)
    listener.close()


def test_nothing_is_left_of_closed_connections(tmp_path):
    counts = []
    for number in range(8):
        path = tmp_path / str(number)
        path.mkdir()
        there, here = pair(path)
        there.close()
        here.close()
        counts.append((len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))
    assert counts[-1] == counts[2]

"""CUDA IPC: host and device memory in one byte stream, tags of device memory, and rings that are freed when no process maps them.

On a GPU if there is one, else over the stand-in for its driver (standin_cuda.c). Tests that need the stand-in are skipped on a GPU.
"""

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abkt.transfer.device import digest, staging
from abkt.transfer.device.staging import to_host
from abkt.transfer.pieces import BufferSink, DevicePieces, PiecesSource
from abkt.transfer.protocol import tags
from abkt.transfer.protocol.device_tags import DeviceTags
from abkt.transfer.protocol.frame import DIGESTED, HEADER_BYTES, FrameError, FrameHeader, FrameType, parse
from abkt.transfer.protocol.messages import Offer
from abkt.transfer.send.outgoing import Outgoing
from abkt.transfer.transport import PeerLost, PeerSilent
from abkt.transfer.transports.cuda import cuda_ipc
from abkt.transfer.transports.cuda.cuda_ipc import DEVICE_RING_BYTES, GREETING, MAGIC, RECORD, CudaIpc
from abkt.transfer.transports.cuda.driver import Driver, DriverError
from abkt.transfer.transports.cuda.memory import ExportedMemory, ImportedMemory, free_released
from tests.transfer.standin_cuda import DEVICE, StandinCudaIpc, driver, live, standin, tensor

WAIT_S = 30.0
PEER = Path(__file__).with_name("cuda_ipc_peer.py")
stands_in = pytest.mark.skipif(DEVICE == "cuda", reason="needs the stand-in for the CUDA driver")


@pytest.fixture(scope="module", autouse=True)
def needs_a_driver():
    try:
        driver()
    except ValueError as missing:
        pytest.skip(str(missing))


def nothing():
    pass


@pytest.fixture
def ends(ends_of):
    return partial(ends_of, StandinCudaIpc())


def pieces(data, stops, on_device):
    """The data in pieces, each in host memory or on the device."""
    bounds = [0, *sorted({min(stop, len(data)) for stop in stops}), len(data)]
    cut = [data[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]  # noqa: RUF007  some may be empty
    return [tensor(each) if there and each else each for each, there in zip(cut, on_device * len(cut), strict=False)]


def spaces(size, stops, on_device):
    made = pieces(bytes(size), stops, on_device)
    return [each if isinstance(each, torch.Tensor) else memoryview(bytearray(each)) for each in made]


CUTS = st.lists(st.integers(0, 3 << 20), max_size=6)
PLACES = st.lists(st.booleans(), min_size=1, max_size=5)


# One byte stream


@given(st.lists(st.tuples(CUTS, PLACES), min_size=1, max_size=3), CUTS, PLACES, st.integers(0, 99))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_arrive_in_order_from_host_or_device_memory(ends, sends, stops, places, seed):
    """This holds for any pieces on either side, and in both directions at once."""
    dice = random.Random(seed)
    there, here = ends(silence_s=5.0)
    said = [dice.randbytes(dice.randint(1, 3 << 20)) for _ in sends]
    whole = b"".join(said)
    back = []

    def echo():
        into = spaces(len(whole), stops, places)
        here.receive(into, nothing)
        here.send(into, nothing)

    thread = threading.Thread(target=echo)
    thread.start()
    for data, (cuts, kinds) in zip(said, sends, strict=True):
        there.send(pieces(data, cuts, kinds), nothing)
    back = spaces(len(whole), stops[::-1], places[::-1])
    there.receive(back, nothing)
    thread.join(WAIT_S)
    assert b"".join(map(to_host, back)) == whole


def test_a_full_ring_waits_until_the_silence_limit(ends):
    there, here = ends(silence_s=0.3)
    with pytest.raises(PeerSilent, match=r"moved no byte for 0\.3 s"):
        there.send([tensor(bytes(DEVICE_RING_BYTES + 1))], nothing)
    with pytest.raises(PeerSilent):
        here.receive(spaces(DEVICE_RING_BYTES + 2, [], [True]), nothing)


def test_a_trickle_of_bytes_counts_as_silence(ends):
    there, here = ends(silence_s=0.5)
    stop = threading.Event()

    def dribble():
        while not stop.wait(0.05):
            there.send([b"x"], nothing)

    thread = threading.Thread(target=dribble)
    thread.start()
    with pytest.raises(PeerSilent, match="only"):
        here.receive([memoryview(bytearray(2000))], nothing)
    stop.set()
    thread.join(WAIT_S)


def test_bytes_in_the_ring_can_be_read_after_the_peer_has_gone(ends):
    there, here = ends()
    there.send([b"last", tensor(b" words")], nothing)
    there.abort()
    assert here.readable(WAIT_S)
    got = spaces(10, [4], [False, True])
    here.receive(got, nothing)
    assert b"".join(map(to_host, got)) == b"last words"
    with pytest.raises(PeerLost, match="closed the connection"):
        here.receive([memoryview(bytearray(1))], nothing)
    with pytest.raises(PeerLost):
        here.send([tensor(bytes(2 * DEVICE_RING_BYTES))], nothing)


def test_each_piece_is_one_copy(ends):
    there, here = ends()
    runs = [tensor(bytes(1000)) for _ in range(5)]
    got = spaces(5000, [], [True])
    assert there.send([b"h" * 64, *runs], nothing) == 5 + 1  # and one count for the host lane
    here.receive([memoryview(bytearray(64)), *got], nothing)


# Tags


def frame_of(tags, payload):
    return tags.seal(FrameHeader(FrameType.DATA, 7, 1, 2, 3, length=sum(map(len, payload))), payload)


def opened(frame, into):
    """Open the frame into these spaces, as a receiver does; returns its header."""
    header, data = parse(frame[0]), b"".join(map(to_host, frame[1:]))

    def receive(step):
        nonlocal data
        for space in step:
            part, data = data[: len(space)], data[len(space) :]
            space[:] = tensor(part) if isinstance(space, torch.Tensor) else part

    DeviceTags().open(header, into, receive)
    return header


@given(
    st.binary(min_size=1, max_size=200),
    st.lists(st.integers(0, 200), max_size=4),
    PLACES,
    st.lists(st.integers(0, 200), max_size=4),
    PLACES,
)
@settings(deadline=None)
def test_a_frame_verifies_in_host_or_device_memory_of_either_side(data, stops, places, other_stops, other_places):
    payload = [each for each in pieces(data, stops, places) if len(each)]
    into = [each for each in spaces(len(data), other_stops, other_places) if len(each)]
    header = opened(frame_of(DeviceTags(), payload), into)
    assert b"".join(map(to_host, into)) == data
    assert bool(header.flags & DIGESTED) == any(isinstance(each, torch.Tensor) for each in payload)


@given(st.binary(min_size=1, max_size=100), st.data())
@settings(deadline=None)
def test_every_flipped_bit_in_device_memory_is_detected(data, draws):
    frame = frame_of(DeviceTags(), [tensor(data)])
    whole = bytearray(frame[0] + to_host(frame[1]))
    bit = draws.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        opened([bytes(whole[:HEADER_BYTES]), bytes(whole[HEADER_BYTES:])], spaces(len(data), [], [True]))


# Transfers


def offered(transfer_id, source):
    return Outgoing(transfer_id, Offer(transfer_id, "raw", 16, source.ends), source)


def device_sink(offer):
    return DevicePieces([tensor(bytes(offer.size))])


@pytest.mark.parametrize("endpoints", ["cuda_ipc", "cuda_ipc-keyed", "cuda_ipc-encrypted"], indirect=True)
@pytest.mark.parametrize("sink_of", [device_sink, lambda offer: BufferSink(offer.size)], ids=["to device", "to host"])
@pytest.mark.parametrize("leaves", ["device", "host"])
def test_raw_kv_arrives_between_any_two_kinds_of_memory(endpoints, leaves, sink_of):
    data = random.Random(1).randbytes(5 << 20)
    stops = [1 << 20, (1 << 20) + 64, (3 << 20) + 17]
    source = DevicePieces(pieces(data, stops, [True])) if leaves == "device" else PiecesSource(pieces(data, stops, [False]))
    receiver = endpoints.receiver(sink_of=sink_of)
    sent = endpoints.sender(receiver.address).submit(offered(1, source)).result(WAIT_S)
    assert not sent.error
    assert b"".join(map(to_host, receiver.committed().sink.buffers(0, len(data)))) == data


@pytest.mark.parametrize("endpoints", ["cuda_ipc"], indirect=True)
def test_a_transfer_between_devices_copies_nothing_to_the_host(endpoints, monkeypatch):
    copied, slow = [], []

    def watched(name):
        function = getattr(staging, name)

        def watch(given):
            copied.extend(each for each in (given if name == "host_buffers" else [given]) if isinstance(each, torch.Tensor))
            return function(given)

        return watch

    for name in ("to_host", "host_buffers"):
        for module in (tags, cuda_ipc):
            monkeypatch.setattr(module, name, watched(name), raising=False)
    joined_before = digest._joined
    monkeypatch.setattr(digest, "_joined", lambda parts, where: slow.append(len(parts)) or joined_before(parts, where))
    source = DevicePieces(pieces(bytes(range(256)) * 65536, [4 << 20, 9 << 20], [True]))
    receiver = endpoints.receiver(sink_of=device_sink)
    sent = endpoints.sender(receiver.address).submit(offered(1, source)).result(WAIT_S)
    assert not sent.error
    assert torch.equal(*(torch.cat(each.buffers(0, source.size)) for each in (source, receiver.committed().sink)))
    assert not copied
    if DEVICE == "cuda":
        assert not slow, "a piece was not aligned"
    assert sent.payload_bytes == 16 << 20


@pytest.mark.parametrize("endpoints", ["cuda_ipc"], indirect=True)
def test_frames_within_one_band_have_aligned_parts(endpoints):
    """Blocks of a pool are aligned, so a kernel can read the parts of a frame in place."""
    taken = []

    class Watched(DevicePieces):
        def buffers(self, start, stop):
            taken.extend(found := super().buffers(start, stop))
            return found

    source = Watched([tensor(bytes(3 << 20)) for _ in range(4)])
    receiver = endpoints.receiver(sink_of=device_sink)
    assert not endpoints.sender(receiver.address).submit(offered(1, source)).result(WAIT_S).error
    assert sum(map(len, taken)) == 12 << 20
    assert digest._aligned(taken)


@contextmanager
def peer(what, address):
    library = "" if DEVICE == "cuda" else str(standin())
    root = str(Path(__file__).parents[3])
    command = [sys.executable, str(PEER), what, address, library]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("endpoints", ["cuda_ipc"], indirect=True)
def test_a_transfer_between_two_processes_goes_from_device_to_device(endpoints, tmp_path):
    dice = random.Random(3)
    with peer("take", str(tmp_path / "peer")) as process:
        sender = endpoints.sender(process.stdout.readline().strip())
        for number in range(3):
            data = dice.randbytes(dice.randint(6 << 20, 20 << 20))
            source = DevicePieces(pieces(data, [1 << 20, 5 << 20], [True]))
            assert not sender.submit(offered(number, source)).result(WAIT_S).error
            assert process.stdout.readline().strip() == hashlib.sha256(data).hexdigest()


# Freeing the memory


@stands_in
def test_the_memory_is_freed_when_both_sides_have_closed(ends):
    before, files = live(), len(os.listdir("/proc/self/fd"))
    for closes_first in (0, 1):
        both = ends()
        both[0].send([tensor(b"x")], nothing)
        got = spaces(1, [], [True])
        both[1].receive(got, nothing)
        assert live() == before + 3, "one allocation, and a stream on each side: a process does not map its own memory"
        both[closes_first].close()
        assert live() == before + 2, "the other side may still use it"
        both[1 - closes_first].close()
        free_released()
        assert live() == before
    assert len(os.listdir("/proc/self/fd")) == files


@stands_in
def test_a_connection_that_nobody_accepts_leaves_nothing(tmp_path):
    before, files = live(), len(os.listdir("/proc/self/fd"))
    listener = StandinCudaIpc().listen(str(tmp_path / "socket"), WAIT_S)
    there = StandinCudaIpc().connect(listener.address, WAIT_S)
    listener.close()
    there.close()
    assert live() == before
    assert len(os.listdir("/proc/self/fd")) == files


@stands_in
def test_the_memory_shared_with_a_killed_peer_is_freed_on_either_side(tmp_path):
    before, files = live(), len(os.listdir("/proc/self/fd"))
    with peer("take", str(tmp_path / "peer")) as process:
        there = StandinCudaIpc().connect(process.stdout.readline().strip(), WAIT_S)
        there.send([tensor(bytes(1000))], nothing)
        assert live() == before + 2
        process.kill()
        process.wait()
        with pytest.raises(PeerLost):
            there.receive([memoryview(bytearray(1))], nothing)
        there.close()
        assert live() == before
    listener = StandinCudaIpc().listen(str(tmp_path / "socket"), WAIT_S)
    with peer("hold", listener.address) as process:
        here = listener.accept(WAIT_S)
        assert process.stdout.readline() == "sent\n"
        assert here.readable(WAIT_S)
        process.send_signal(signal.SIGKILL)
        process.wait()
        got = spaces(1, [], [True])
        here.receive(got, nothing)  # the bytes that it had sent are still there
        assert to_host(got[0]) == b"\7"
        assert live() == before + 2, "mapped, and a stream"
        with pytest.raises(PeerLost, match="closed the connection"):
            here.receive(got, nothing)
        here.close()
    listener.close()
    assert live() == before
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize("endpoints", ["cuda_ipc"], indirect=True)
def test_a_peer_killed_during_a_transfer_is_detected_at_once(endpoints, tmp_path):
    with peer("take", str(tmp_path / "peer")) as process:
        sender = endpoints.sender(process.stdout.readline().strip())
        killed = []

        def kill(now_s, wire_bytes, duration_s):
            if not killed:
                process.kill()
                killed.append(time.monotonic())

        outgoing = offered(1, DevicePieces([tensor(bytes(64 << 20))]))
        outgoing.on_sent = kill
        error = sender.submit(outgoing).result(WAIT_S).error
        assert "not resumed within" in error
        assert time.monotonic() - killed[0] < 10


# Peers that break the protocol


def files(*, memory=True, counting=True, pipe=True):
    """The file descriptors that a connecting side passes. False stands for a wrong one."""
    import fcntl

    ring = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(ring, 2 * cuda_ipc.RING_BYTES if memory else 4096)
    fcntl.fcntl(ring, fcntl.F_ADD_SEALS, cuda_ipc.SEALS)
    ours, theirs = socket.socketpair() if counting is True else socket.socketpair(type=socket.SOCK_DGRAM)
    ours.close()
    read, write = os.pipe()
    os.close(read)
    last = write if pipe else os.dup(theirs.fileno())
    if not pipe:
        os.close(write)
    middle = os.open(os.devnull, os.O_RDWR) if counting is None else theirs.detach()
    theirs.close()
    return [ring, middle, last]


def greeting(magic=MAGIC, size=2 * DEVICE_RING_BYTES, handle=b""):
    return GREETING.pack(magic, size, b"another GPU, far", handle or b"no handle")


@pytest.mark.parametrize(
    ("said", "given", "complaint"),
    [
        (b"GET / HTTP/1.1", list, "does not speak this protocol"),
        (greeting(), list, "does not speak this protocol"),
        (greeting()[:50], files, "does not speak this protocol"),
        (greeting(magic=b"ABKT shm"), files, "does not speak this protocol"),
        (greeting(size=DEVICE_RING_BYTES), files, "does not speak this protocol"),
        (greeting(size=2**63), files, "does not speak this protocol"),
        (greeting(), lambda: files(memory=False), "of another size"),
        (greeting(), lambda: files(counting=False), "does not speak this protocol"),
        (greeting(), lambda: files(counting=None), "does not speak this protocol"),
        (greeting(), lambda: files(pipe=False), "does not speak this protocol"),
        (
            greeting(),
            files,
            f"memory of GPU {b'another GPU, far'.hex()}, which GPU .* cannot use: cuIpcOpenMemHandle_v2: CUDA_ERROR_",
        ),
        (greeting(handle=b"1 99999999"), files, "cannot use: cuIpcOpenMemHandle_v2: CUDA_ERROR_"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_an_invalid_greeting_is_refused(tmp_path, said, given, complaint):
    before = len(os.listdir("/proc/self/fd"))
    listener = StandinCudaIpc().listen(str(tmp_path / "socket"), WAIT_S)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.address)
        given_away = given()
        socket.send_fds(client, [said], given_away)
        for number in given_away:
            os.close(number)
        here = listener.accept(WAIT_S)
        with pytest.raises(PeerLost, match=complaint) as caught:
            here.receive([memoryview(bytearray(1))], nothing)
        assert "\n" not in str(caught.value)
        with pytest.raises(PeerLost):
            here.send([tensor(b"x")], nothing)
        here.close()
    listener.close()
    assert len(os.listdir("/proc/self/fd")) == before


@stands_in
def test_memory_that_is_too_small_is_refused_and_unmapped(tmp_path):
    """Writing past its end would crash this process."""
    before = live()
    small = ExportedMemory(driver(), 4096)
    with pytest.raises(ValueError, match="exported 4096 bytes of GPU memory, not 8192"):
        ImportedMemory(driver(), small.handle, 8192, small.release_fd)
    os.close(small.release_fd)
    small.close()
    assert live() == before


def test_a_record_that_claims_more_bytes_than_arrive_ends_in_silence(tmp_path, ends):
    there, here = ends(silence_s=0.3)
    there._host.send([RECORD.pack(True, 1 << 60)], nothing)
    with pytest.raises(PeerSilent):
        here.receive([memoryview(bytearray(1))], nothing)


# The driver


@stands_in
def test_without_a_gpu_the_transport_is_refused_in_one_line():
    for make in (CudaIpc, Driver, lambda: Driver(1, library=str(standin()))):
        with pytest.raises(ValueError, match="CUDA IPC needs") as caught:
            make()
        assert "\n" not in str(caught.value)


def test_an_error_names_the_call_and_restores_the_context():
    for _ in range(2):
        with pytest.raises(DriverError, match="cuMemFree_v2: CUDA_ERROR_INVALID_VALUE"):
            driver().free(64)
    with pytest.raises(DriverError, match="cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY"):
        driver().allocate(1 << 60)

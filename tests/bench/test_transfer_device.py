"""The transfer bench from a device's memory to it, over a driver that stands in for a GPU's where there is none."""

import pytest
import torch

from abkt.bench import transfer
from abkt.bench.arguments import BenchArguments
from abkt.bench.transfer_peer import LAYOUT, TouchedMemory
from abkt.transfer.pieces import DevicePieces
from abkt.transfer.protocol.messages import Hello
from abkt.transfer.receive.receiver import Receiver
from abkt.transfer.transports import registry as transports
from tests.transfer.standin_cuda import DEVICE, StandinCudaIpc, driver


def test_pieces_are_apart_on_both_sides_and_each_is_a_copy(monkeypatch, tmp_path):
    try:
        driver()
    except ValueError as missing:
        pytest.skip(str(missing))
    size, piece_bytes = 100_000, 30_000
    ours = torch.randint(0, 256, (2 * size,), dtype=torch.uint8, device=DEVICE)
    theirs = torch.zeros(2 * size, dtype=torch.uint8, device=DEVICE)
    monkeypatch.setitem(transports.TRANSPORTS, "cuda_ipc", "tests.transfer.standin_cuda:StandinCudaIpc")
    receiver = Receiver(
        StandinCudaIpc(), str(tmp_path / "socket"), Hello("r", LAYOUT), TouchedMemory(theirs).sink, lambda r: None, lambda r, reason: None
    )
    course = transfer.TransferCourse("cuda_ipc", receiver.address)
    try:
        seconds, sent = course.send(TouchedMemory(ours), size, piece_bytes)
    finally:
        course.close()
        receiver.close()
    assert seconds > 0
    assert sent.payload_bytes == size
    assert isinstance(TouchedMemory(ours).source(size, piece_bytes), DevicePieces)
    for start in range(0, size, piece_bytes):
        stop = 2 * start + min(piece_bytes, size - start)
        assert torch.equal(theirs[2 * start : stop], ours[2 * start : stop])
        assert not theirs[stop : 2 * (start + piece_bytes)].any(), "between two pieces nothing is written"


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
def test_without_a_gpu_one_line_says_so():
    with pytest.raises(ValueError, match=r"^CUDA IPC needs an NVIDIA GPU") as caught:
        transfer.facts(BenchArguments(device="cuda"))
    assert "\n" not in str(caught.value)

"""The other process of the transfer bench: it receives transfers into memory that it has written before.

`python -m abkt.bench.transfer_peer KIND ADDRESS SIZE_BYTES FRAME_BYTES`: KIND is a transport, or `bare` for a loop of recv_into over TCP.
The process prints its address, and serves until its stdin ends. Over a transport that reaches a GPU's memory, it receives into GPU memory.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any

from abkt.bench.bare import serve
from abkt.module_process import module_command, module_environment
from abkt.transfer.pieces import ByteSink, ByteSource, DevicePieces, PiecesSink, PiecesSource
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.receive.receiver import Receiver
from abkt.transfer.transports.registry import make_transport

ON_HOST = ("tcp", "unix", "shm", "nixl")
ON_DEVICE = ("cuda_ipc",)
LAYOUT = "bench"


def available() -> list[str]:
    """Names of the transports for host memory whose library is installed."""
    names = []
    for name in ON_HOST:
        with suppress(ValueError):
            make_transport(name)
            names.append(name)
    return names


class TouchedMemory:
    """Gives one source or sink after another in the same memory, a memoryview or a tensor. Between two pieces there is a gap of one piece,
    so that no two are adjacent."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def _pieces(self, size: int, piece_bytes: int) -> list[Any]:
        return [self._memory[2 * start : 2 * start + min(piece_bytes, size - start)] for start in range(0, size, piece_bytes)]

    def source(self, size: int, piece_bytes: int) -> ByteSource:
        kind = PiecesSource if isinstance(self._memory, memoryview) else DevicePieces
        return kind(self._pieces(size, piece_bytes))

    def sink(self, peer: str, offer: Offer) -> ByteSink:
        """A sink for an offer, which states the size of its pieces."""
        kind = PiecesSink if isinstance(self._memory, memoryview) else DevicePieces
        return kind(self._pieces(offer.size, int(offer.more["piece_bytes"])))


class PeerProcess:
    """A context manager that starts the peer process and ends it."""

    def __init__(self, kind: str, address: str, size_bytes: int, frame_bytes: int) -> None:
        command = module_command("abkt.bench.transfer_peer", kind, address, str(size_bytes), str(frame_bytes))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=module_environment())
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._process.communicate(timeout=30)


def written(size_bytes: int, kind: str) -> Any:
    """Memory to receive into. Each of its pages has been written once."""
    if kind not in ON_DEVICE:
        memory = memoryview(bytearray(size_bytes))
        memory[:] = bytes(1) * size_bytes
        return memory
    import torch

    there = torch.zeros(size_bytes, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    return there


def main() -> None:
    kind, address, size, frame = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if kind == "bare":
        serve(size, frame, lambda address: print(address, flush=True))
        return
    memory = TouchedMemory(written(2 * size, kind))
    transport = make_transport(kind)
    receiver = Receiver(
        transport, address, Hello("bench-receiver", LAYOUT), memory.sink, lambda received: None, lambda received, reason: None
    )
    print(receiver.address, flush=True)
    sys.stdin.read()
    receiver.close()


if __name__ == "__main__":
    main()

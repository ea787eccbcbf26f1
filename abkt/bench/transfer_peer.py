"""The other process of the transfer bench: takes what comes, into memory that it has touched before.

`python -m abkt.bench.transfer_peer KIND ADDRESS SIZE_BYTES FRAME_BYTES`: KIND is a transport, or `bare` for a loop of recv_into over TCP;
says its address on stdout, and serves until its stdin ends.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from types import TracebackType

from abkt.bench.bare import serve
from abkt.transfer.messages import Hello, Offer
from abkt.transfer.nixl import Nixl
from abkt.transfer.pieces import ByteSink, PiecesSink
from abkt.transfer.receiver import Receiver
from abkt.transfer.shm import Shm
from abkt.transfer.tcp import Tcp
from abkt.transfer.transport import Transport
from abkt.transfer.unix import Unix

TRANSPORTS: dict[str, type[Transport]] = {"tcp": Tcp, "unix": Unix, "shm": Shm, "nixl": Nixl}
LAYOUT = "bench"


def available() -> list[str]:
    """The names of those whose library is installed."""
    names = []
    for name, kind in TRANSPORTS.items():
        with suppress(ValueError):
            kind()
            names.append(name)
    return names


class Memory:
    """One sink after another in the same memory; an offer says how large its pieces are, and no two of them are adjacent."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = memoryview(bytearray(2 * size_bytes))
        self._memory[:] = bytes(1) * len(self._memory)  # each page has been written once

    def sink(self, peer: str, offer: Offer) -> ByteSink:
        piece = int(offer.more["piece_bytes"])
        return PiecesSink(self._memory[2 * start : 2 * start + min(piece, offer.size - start)] for start in range(0, offer.size, piece))


class PeerProcess:
    """Starts it; a context manager."""

    def __init__(self, kind: str, address: str, size_bytes: int, frame_bytes: int) -> None:
        command = [sys.executable, "-m", "abkt.bench.transfer_peer", kind, address, str(size_bytes), str(frame_bytes)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._process.communicate(timeout=30)


def main() -> None:
    kind, address, size, frame = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if kind == "bare":
        serve(size, frame, lambda address: print(address, flush=True))
        return
    memory = Memory(size)
    receiver = Receiver(
        TRANSPORTS[kind](), address, Hello("bench-receiver", LAYOUT), memory.sink, lambda received: None, lambda received, reason: None
    )
    print(receiver.address, flush=True)
    sys.stdin.read()
    receiver.close()


if __name__ == "__main__":
    main()

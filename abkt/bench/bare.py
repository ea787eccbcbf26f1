"""The yardstick for TCP: the same bytes in the same frames, by sendmsg and recvmsg_into alone, without headers, tags or threads."""

from __future__ import annotations

import socket
from collections.abc import Callable


def serve(size_bytes: int, frame_bytes: int, say: Callable[[str], None]) -> None:
    """Receive size_bytes again and again into the same memory, answer each time with one byte, and stop when the peer closes. say: prints
    the address."""
    memory = memoryview(bytearray(size_bytes))
    memory[:] = bytes(1) * size_bytes
    with socket.create_server(("127.0.0.1", 0)) as listening:
        say(f"127.0.0.1:{listening.getsockname()[1]}")
        connected, _ = listening.accept()
        with connected:
            while True:
                got = 0
                while got < size_bytes:
                    frame_end = (got // frame_bytes + 1) * frame_bytes
                    count = connected.recvmsg_into([memory[got:frame_end]])[0]
                    if not count:
                        return
                    got += count
                connected.send(b"x")


class BareSender:
    """Sends to `serve`."""

    def __init__(self, address: str, frame_bytes: int) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._frame_bytes = frame_bytes

    def send(self, memory: memoryview) -> None:
        """Send all of it. Returns when the peer has received it."""
        for start in range(0, len(memory), self._frame_bytes):
            rest = memory[start : start + self._frame_bytes]
            while rest:
                rest = rest[self._socket.sendmsg([rest]) :]
        if self._socket.recv(1) != b"x":
            raise ConnectionError("the bare peer has closed the connection")

    def close(self) -> None:
        self._socket.close()

"""Rings of memory that two of torch's process groups fill, one for each direction: sends of this side, receives of what the peer told."""

from __future__ import annotations

import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from abkt.transfer.transport import PeerLost, PeerSilent
from abkt.transfer.transports.ring import Spans

RING_BYTES = 4 << 20
STEP_S = 20e-6
LINGER_S = 0.5


class GroupRings:
    """Both groups of one side. store, waits: see `groups` and GroupConnection._waits. Raises ValueError, one line."""

    size = RING_BYTES

    def __init__(self, kind: str, store: socket.socket | int, peer: str, silence_s: float, waits: Callable[[float], None]) -> None:
        import torch

        self._nccl, self._peer, self._silence_s, self._waits = kind == "nccl", peer, silence_s, waits
        self._rank = int(isinstance(store, int))
        self._host = [torch.zeros(RING_BYTES, dtype=torch.uint8, pin_memory=self._nccl) for _ in range(2)]  # out, in
        self._memory = [host.cuda() for host in self._host] if self._nccl else self._host
        self._out, self._in = (_view(host) for host in self._host)
        self._spans = Spans()
        self._sending: deque[tuple[int, Any]] = deque()  # up to which byte, and the work: it holds the memory until the peer has taken it
        self._coming: deque[tuple[int, int, int, Any]] = deque()  # from which byte on, where in the ring from and to, and the work
        self._sent = self._acknowledged = self._told = self._taken = 0  # bytes, from the beginning
        try:
            self._groups = groups(kind, store, self._rank, silence_s)
            for way in (0, 1):  # NCCL meets at the first byte, which must not wait for a count
                (self._send if way == self._rank else self._receive)(0, 1)
            self._finish(*self._coming.popleft()[1:])
        except RuntimeError as error:
            raise ValueError(f"could not be met by {kind}: {brief(error)}") from None
        except (PeerLost, PeerSilent) as error:
            raise ValueError(f"could not be met by {kind}: {error}") from None
        self._told = 0

    def put(self, at: int, piece: memoryview) -> None:
        stop = at + len(piece)
        self._out[at:stop] = piece
        self._spans.add(at, stop)

    def unsent(self) -> bytes:
        """What has been put since the last time, which goes another way."""
        said = b"".join(self._out[start:stop] for start, stop in self._spans)
        self._sent += len(said)
        self._spans.clear()
        return said

    def written(self) -> None:
        """Under way: the peer is told next how much to receive, and the memory stays until it has."""
        try:
            for start, stop in self._spans:
                self._sent += stop - start
                self._send(start, stop)
        except RuntimeError as error:
            raise PeerLost(f"the connection with {self._peer} broke: {brief(error)}") from None
        self._spans.clear()

    def acknowledged(self, count: int) -> None:
        self._acknowledged += count
        while self._sending and self._sending[0][0] <= self._acknowledged:
            self._sending.popleft()

    def expect(self, count: int) -> None:
        """The peer sends so many bytes, in one piece or, where the ring ends, in two. Raises PeerLost."""
        at = self._told % RING_BYTES
        first = min(count, RING_BYTES - at)
        try:
            self._receive(at, at + first)
            if first < count:
                self._receive(0, count - first)
        except RuntimeError as error:
            raise PeerLost(f"the connection with {self._peer} broke: {brief(error)}") from None

    def place(self, piece: bytes) -> None:
        """Bytes that came another way."""
        at = self._told % RING_BYTES
        first = min(len(piece), RING_BYTES - at)
        self._in[at : at + first] = piece[:first]
        self._in[: len(piece) - first] = piece[first:]
        self._told += len(piece)

    def take(self, at: int, piece: memoryview) -> None:
        while self._coming and self._coming[0][0] < self._taken + len(piece):
            self._finish(*self._coming.popleft()[1:])
        piece[:] = self._in[at : at + len(piece)]
        self._taken += len(piece)

    def read(self) -> None:
        pass

    def close(self) -> None:
        """What is under way ends with the groups; what the peer was told of gets LINGER_S, for last words stand behind it."""
        until_s = time.monotonic() + LINGER_S
        with suppress(RuntimeError):  # it has left, or does not take it
            for _, work in self._sending:
                if not self._nccl:
                    work.wait(timedelta(seconds=max(1e-3, until_s - time.monotonic())))
                while self._nccl and not work.is_completed() and time.monotonic() < until_s:
                    time.sleep(STEP_S)
        if self._nccl:
            for group in self._groups:
                group.abort()
        self._sending.clear()
        self._coming.clear()
        self._groups.clear()
        self._out.release()
        self._in.release()
        self._host, self._memory = [], []

    def _send(self, start: int, stop: int) -> None:
        if self._nccl:
            self._memory[0][start:stop].copy_(self._host[0][start:stop], non_blocking=True)
        self._sending.append((self._sent, self._groups[self._rank].send([self._memory[0][start:stop]], 1 - self._rank, 0)))

    def _receive(self, start: int, stop: int) -> None:
        work = self._groups[1 - self._rank].recv([self._memory[1][start:stop]], 1 - self._rank, 0)
        self._coming.append((self._told, start, stop, work))
        self._told += stop - start

    def _finish(self, start: int, stop: int, work: Any) -> None:
        """Wait until it is there. gloo's work knows that it is done only by waiting, and a wait that timed out ends the group."""
        begun_s = time.monotonic()
        try:
            if not self._nccl:
                work.wait(timedelta(seconds=self._silence_s))
                return
            while not work.is_completed():
                self._waits(begun_s)
                time.sleep(STEP_S)
            work.wait()
        except RuntimeError as error:
            if "Timed out" in str(error):
                raise PeerSilent(f"{self._peer} has moved no byte for {self._silence_s:g} s in the middle of a frame") from None
            raise PeerLost(f"the connection with {self._peer} broke: {brief(error)}") from None
        self._host[1][start:stop].copy_(self._memory[1][start:stop])


def _view(host: Any) -> memoryview:
    return memoryview(host.numpy())


def groups(kind: str, at: socket.socket | int, rank: int, silence_s: float) -> list[Any]:
    """One for what rank 0 sends, one for what rank 1 sends; both sides call this at once. Raises RuntimeError if they do not meet.

    at: where the store listens, if this side has it, and is handed over; else its port.
    """
    import torch

    distributed: Any = torch.distributed
    timeout = timedelta(seconds=silence_s)
    port, listening = (at, None) if isinstance(at, int) else (at.getsockname()[1], at.detach())
    store = distributed.TCPStore("127.0.0.1", port, None, listening is not None, timeout, False, master_listen_fd=listening)
    if kind == "gloo":
        options = distributed.ProcessGroupGloo._Options()
        options._devices = [distributed.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        made = distributed.ProcessGroupGloo
    else:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # its watchdog would end the process with the peer
        options = distributed.ProcessGroupNCCL.Options()
        made = distributed.ProcessGroupNCCL
    options._timeout = timeout
    return [made(distributed.PrefixStore(str(way), store), rank, 2, options) for way in (0, 1)]


def brief(error: RuntimeError) -> str:
    """What a library says first, without the place in its source, its advice and its stack."""
    return re.sub(r"^\[\S*\] ", "", str(error)).partition("\n")[0].partition(". ")[0]

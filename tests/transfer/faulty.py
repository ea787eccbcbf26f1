"""A transport that injects one fault into what its side sends on a connection: at a given byte, or in the frame with that byte."""

import threading
import time
from dataclasses import dataclass

KINDS = ("break", "flip", "stall", "truncate", "drop", "duplicate", "reorder")


@dataclass
class Fault:
    """break: the connection ends before byte `at`. truncate: the rest of the byte's frame is left out. stall: a pause of stall_s before it.

    flip: one bit of the byte changes. drop, duplicate, reorder: the byte's frame is left out, sent twice, or sent after the next frame.
    """

    kind: str
    at: int
    stall_s: float = 0.0


class Faulty:
    """faults: one for each of the first connections, in order; None means no fault. Later connections have no fault."""

    def __init__(self, transport, faults):
        self._transport, self._faults = transport, list(faults)
        self.connections = 0
        self._lock = threading.Lock()

    def connect(self, *where, **how):
        connection = self._transport.connect(*where, **how)
        with self._lock:
            fault = self._faults[self.connections] if self.connections < len(self._faults) else None
            self.connections += 1
        return FaultyConnection(connection, fault) if fault else connection

    def listen(self, *where, **how):
        return self._transport.listen(*where, **how)


class FaultyConnection:
    def __init__(self, connection, fault):
        self._connection, self._fault, self._sent = connection, fault, 0
        self._held = b""

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def send(self, buffers, on_wait):
        size = sum(len(buffer) for buffer in buffers)
        begun, self._sent = self._sent, self._sent + size
        if self._held:
            held, self._held = self._held, b""
            self._connection.send(buffers, on_wait)
            return self._connection.send([held], on_wait)
        if not begun <= self._fault.at < begun + size:
            return self._connection.send(buffers, on_wait)
        frame, at = bytearray(b"".join(buffers)), self._fault.at - begun
        match self._fault.kind:
            case "break":
                self._connection.send([frame[:at]] if at else [], on_wait)
                self._connection.abort()
                return self._connection.send([frame[at:]], on_wait)
            case "flip":
                frame[at] ^= 1 << at % 8
            case "stall":
                self._connection.send([frame[:at]] if at else [], on_wait)
                time.sleep(self._fault.stall_s)
                frame = frame[at:]
            case "truncate":
                frame = frame[:at]
            case "drop":
                frame = b""
            case "duplicate":
                frame = frame + frame  # a new object: views of the old one may still exist
            case "reorder":
                self._held = bytes(frame)
                return 1
        return self._connection.send([frame], on_wait) if frame else 1

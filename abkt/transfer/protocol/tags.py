"""How the frames of one direction of a connection are sealed and opened: xxh3 without a key; AES-256-GMAC, or AES-256-GCM, with one.

A keyed nonce is direction (1 byte), epoch (4) and a counter of this direction's frames (7). The key is that of one direction of one
connection, and a frame is never sent twice on a connection, so no nonce meets two payloads: after a break both sides have new keys.
The counter is not on the wire: a frame that is lost, repeated or moved does not fit its tag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from abkt.transfer.device.pieces import Piece, Space, fetched, hosted
from abkt.transfer.protocol.frame import TAG_BYTES, Buffer, FrameError, FrameHeader, seal

STEP_BYTES = 512 << 10  # checked while it is still in the cache
ONCE_BYTES = 1 << 20  # so short a payload is read in one step: to wait twice for it costs more than the cache saves

Receive = Callable[[Sequence[Space]], None]


class Tags(Protocol):
    """Of one direction; used by one thread, for every frame in its order."""

    def seal(self, header: FrameHeader, payload: Sequence[Piece]) -> list[Piece]:
        """The frame as it goes over the wire, its 64 header bytes first; valid until the next call."""
        ...

    def open(self, header: FrameHeader, buffers: Sequence[Space], receive: Receive) -> None:
        """Fill `buffers`, which are as long as the payload, from the wire: `receive` reads its next bytes, into memory that it is given.

        Raises FrameError if it is not what was sealed, and then the buffers hold rubbish.
        """
        ...


class Plain:
    """Finds accidents, not attackers. Of bytes of the host: those of a device are copied there, on both sides."""

    def seal(self, header: FrameHeader, payload: Sequence[Piece]) -> list[Piece]:
        host = [fetched(piece) for piece in payload]
        return [seal(header, host), *host]

    def open(self, header: FrameHeader, buffers: Sequence[Space], receive: Receive) -> None:
        import xxhash

        digest = xxhash.xxh3_128(header.untagged())
        with hosted(buffers) as host:
            for step in steps(host):
                receive(step)
                for piece in step:
                    digest.update(piece)
            if digest.digest() != header.tag:
                raise unfit(header)


def steps(buffers: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The buffers in their order: all at once if they are short, else STEP_BYTES at a time at most."""
    if sum(map(len, buffers)) <= ONCE_BYTES:
        if buffers:
            yield list(buffers)
        return
    step, size = [], 0
    for buffer in buffers:
        start = 0
        while start < len(buffer):
            piece = buffer[start : start + STEP_BYTES - size]
            step.append(piece)
            start, size = start + len(piece), size + len(piece)
            if size == STEP_BYTES:
                yield step
                step, size = [], 0
    if step:
        yield step


def unfit(header: FrameHeader) -> FrameError:
    return FrameError(f"{header.type.name} frame {header.sequence} of transfer {header.transfer_id} is damaged: its tag does not fit")


class Keyed:
    """direction: 0 for what the side that connected says, 1 for the other. encrypt: payloads too are hidden.

    It is the host that computes: what is on a device is copied to its memory, and from there, on both sides.
    """

    def __init__(self, key: bytes, direction: int, encrypt: bool) -> None:
        self._key = key
        self._direction = bytes([direction])
        self._encrypt = encrypt
        self._count = 0
        self._hidden = bytearray()

    def seal(self, header: FrameHeader, payload: Sequence[Piece]) -> list[Piece]:
        encryptor = self._cipher(header, b"").encryptor()
        untagged = header.untagged()
        encryptor.authenticate_additional_data(untagged)
        host: list[Buffer] = [fetched(piece) for piece in payload]
        if self._encrypt:
            hidden, done = self._scratch(header.length), 0
            for piece in host:
                done += encryptor.update_into(piece, hidden[done:])
            host = [hidden] if done else []
        else:
            for piece in host:
                encryptor.authenticate_additional_data(piece)
        encryptor.finalize()
        return [untagged + encryptor.tag, *host]

    def open(self, header: FrameHeader, buffers: Sequence[Space], receive: Receive) -> None:
        with hosted(buffers) as host:
            self._open(header, host, receive)

    def _open(self, header: FrameHeader, buffers: Sequence[memoryview], receive: Receive) -> None:
        from cryptography.exceptions import InvalidTag

        decryptor = self._cipher(header, header.tag).decryptor()
        decryptor.authenticate_additional_data(header.untagged())
        for step in steps(buffers):
            if self._encrypt:
                hidden, done = self._scratch(sum(map(len, step))), 0
                receive([hidden])
                for piece in step:
                    decryptor.update_into(hidden[done : done + len(piece)], piece)
                    done += len(piece)
            else:
                receive(step)
                for piece in step:
                    decryptor.authenticate_additional_data(piece)
        try:
            decryptor.finalize()
        except InvalidTag:
            raise unfit(header) from None

    def _cipher(self, header: FrameHeader, tag: bytes) -> Any:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        nonce = self._direction + header.epoch.to_bytes(4, "little") + self._count.to_bytes(7, "little")
        self._count += 1
        return Cipher(algorithms.AES(self._key), modes.GCM(nonce, tag or None, TAG_BYTES))

    def _scratch(self, size: int) -> memoryview:
        """For ciphertext; grows up to the largest frame, which the caps of the header bound."""
        if len(self._hidden) < size:
            self._hidden = bytearray(size)
        return memoryview(self._hidden)[:size]

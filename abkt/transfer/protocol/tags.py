"""How frames are sealed and opened: an xxh3 tag without a key; an AES-256-GMAC tag, or AES-256-GCM encryption, with a key.

A nonce is the direction (1 byte), the epoch (4) and a counter of the frames of this direction (7). A key belongs to one direction of one
connection, and a frame is never sent twice on a connection, so no nonce is used for two payloads. After a break both sides have new keys.
The counter is not on the wire: the tag of a lost, repeated or reordered frame does not verify.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from abkt.transfer.buffers import Buffer, Piece, Space
from abkt.transfer.device.staging import host_buffers, to_host
from abkt.transfer.protocol.frame import TAG_BYTES, FrameError, FrameHeader, seal

STEP_BYTES = 512 << 10  # a payload is read and checked in steps of this size, while a step is still in the CPU cache
ONE_STEP_BYTES = 1 << 20  # a payload up to this size is read in one step: waiting twice would cost more than the cache saves

Receive = Callable[[Sequence[Space]], None]


class Tags(Protocol):
    """Seals or opens the frames of one direction of a connection, in their order. Used by one thread."""

    def seal(self, header: FrameHeader, payload: Sequence[Piece]) -> list[Piece]:
        """The frame as it goes over the wire: the 64 header bytes, then the payload. Valid until the next call."""
        ...

    def open(self, header: FrameHeader, buffers: Sequence[Space], receive: Receive) -> None:
        """Read and check the payload of a frame.

        buffers: are filled; together they are as long as the payload. receive: reads the next bytes of the wire into the memory given.
        Raises FrameError if the tag does not verify. The contents of the buffers are undefined then.
        """
        ...


class PlainTags:
    """xxh3_128 tags: they find accidental damage, but do not stop an attacker.

    They are computed on the host; bytes on a device are copied to host memory for it, on both sides.
    """

    def seal(self, header: FrameHeader, payload: Sequence[Piece]) -> list[Piece]:
        host = [to_host(piece) for piece in payload]
        return [seal(header, host), *host]

    def open(self, header: FrameHeader, buffers: Sequence[Space], receive: Receive) -> None:
        import xxhash

        digest = xxhash.xxh3_128(header.untagged())
        with host_buffers(buffers) as host:
            for step in steps(host):
                receive(step)
                for piece in step:
                    digest.update(piece)
            if digest.digest() != header.tag:
                raise damaged_frame(header)


def steps(buffers: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The buffers in their order: in one step if they are short, else at most STEP_BYTES a step."""
    if sum(map(len, buffers)) <= ONE_STEP_BYTES:
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


def damaged_frame(header: FrameHeader) -> FrameError:
    return FrameError(f"{header.type.name} frame {header.sequence} of transfer {header.transfer_id} is damaged: its tag does not fit")


class KeyedTags:
    """AES-256-GMAC tags or, with `encrypt`, AES-256-GCM. direction: 0 for frames of the side that connected, 1 for those of the other.

    They are computed on the host; bytes on a device are copied to host memory for it, on both sides.
    """

    def __init__(self, key: bytes, direction: int, encrypt: bool) -> None:
        self._key = key
        self._direction = bytes([direction])
        self._encrypt = encrypt
        self._count = 0
        self._ciphertext = bytearray()

    def seal(self, header: FrameHeader, payload: Sequence[Piece]) -> list[Piece]:
        encryptor = self._cipher(header, b"").encryptor()
        untagged = header.untagged()
        encryptor.authenticate_additional_data(untagged)
        host: list[Buffer] = [to_host(piece) for piece in payload]
        if self._encrypt:
            ciphertext, done = self._scratch(header.length), 0
            for piece in host:
                done += encryptor.update_into(piece, ciphertext[done:])
            host = [ciphertext] if done else []
        else:
            for piece in host:
                encryptor.authenticate_additional_data(piece)
        encryptor.finalize()
        return [untagged + encryptor.tag, *host]

    def open(self, header: FrameHeader, buffers: Sequence[Space], receive: Receive) -> None:
        with host_buffers(buffers) as host:
            self._open(header, host, receive)

    def _open(self, header: FrameHeader, buffers: Sequence[memoryview], receive: Receive) -> None:
        from cryptography.exceptions import InvalidTag

        decryptor = self._cipher(header, header.tag).decryptor()
        decryptor.authenticate_additional_data(header.untagged())
        for step in steps(buffers):
            if self._encrypt:
                ciphertext, done = self._scratch(sum(map(len, step))), 0
                receive([ciphertext])
                for piece in step:
                    decryptor.update_into(ciphertext[done : done + len(piece)], piece)
                    done += len(piece)
            else:
                receive(step)
                for piece in step:
                    decryptor.authenticate_additional_data(piece)
        try:
            decryptor.finalize()
        except InvalidTag:
            raise damaged_frame(header) from None

    def _cipher(self, header: FrameHeader, tag: bytes) -> Any:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        nonce = self._direction + header.epoch.to_bytes(4, "little") + self._count.to_bytes(7, "little")
        self._count += 1
        return Cipher(algorithms.AES(self._key), modes.GCM(nonce, tag or None, TAG_BYTES))

    def _scratch(self, size: int) -> memoryview:
        """Memory for ciphertext. It grows to the size of the largest frame, which the header caps bound."""
        if len(self._ciphertext) < size:
            self._ciphertext = bytearray(size)
        return memoryview(self._ciphertext)[:size]

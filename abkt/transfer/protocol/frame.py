"""The frame: a fixed 64-byte header, then the payload. Struct-packed; nothing that a peer sends is executed or unpickled.

The header is little-endian: magic 4s, version u16, type u8, flags u8, transfer id u64, sequence u64, offset u64, epoch u32, length u32,
reserved u64 (zero), tag 16s. The tag covers the first 48 bytes and the payload. The tag made here is their xxh3_128, which finds
accidental damage but does not stop an attacker; with a key, tags.py makes another tag.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from abkt.transfer.buffers import Buffer

MAGIC = b"ABKT"
VERSION = 3  # 3: mode of an OFFER is raw, lossless or stream
HEADER_BYTES = 64
TAG_BYTES = 16
DATA_CAP_BYTES = 8 << 20
META_CAP_BYTES = 256 << 10
HELLO_CAP_BYTES = 16 << 10  # small, because a peer that is not authenticated may send one
PROOF_BYTES = 32
PRICE_BYTES = 8
OFFSET_CAP_BYTES = 1 << 48
CLOSING = 1  # flag of ABORT: the whole connection ends, not only this transfer
COMMITTED = 2  # flag of ACK: it answers a COMMIT, and all bytes that the COMMIT covers have arrived; without it, the ACK reports progress
MORE = 4  # flag of COMMIT: refinement follows, and a later COMMIT without this flag ends it
DIGESTED = 8  # flag of DATA: the tag covers the device digest of the payload (device/digest.py), not the payload itself

_FIELDS = struct.Struct("<4sHBBQQQIIQ")


class FrameError(ValueError):
    """A frame, or a message in one, that breaks the protocol. The message is one line."""


class FrameType(IntEnum):
    HELLO = 1
    OFFER = 2
    GRANT = 3
    DATA = 4
    ACK = 5
    COMMIT = 6
    ABORT = 7
    PING = 8
    PROOF = 9


_TYPES = {int(kind): kind for kind in FrameType}
_CAPS = {
    FrameType.DATA: DATA_CAP_BYTES,
    FrameType.HELLO: HELLO_CAP_BYTES,
    FrameType.PROOF: PROOF_BYTES,
    FrameType.ACK: PRICE_BYTES,
    FrameType.PING: 0,
}
_FLAGS = {FrameType.ABORT: CLOSING, FrameType.ACK: COMMITTED, FrameType.COMMIT: MORE, FrameType.DATA: DIGESTED}
_COUNTED = (FrameType.OFFER, FrameType.DATA, FrameType.COMMIT, FrameType.PING)
_OF_CONNECTION = (FrameType.HELLO, FrameType.PROOF, FrameType.PING)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The fields of a header.

    Parameters
    ----------
    type : FrameType
        What the payload is.
    transfer_id : int
        The transfer that the frame belongs to; 0 in HELLO, PROOF and PING.
    sequence : int
        In DATA and COMMIT, the number of DATA frames of this transfer before it. In OFFER, the number of transfers that the sender has
        offered before. In PING, the number of frames that its side has sent before it.
    offset : int
        In DATA, where the payload lies in the byte sequence. In ACK, how many payload bytes the receiver holds.
    epoch : int
        Which attempt of the transfer this is, from 0. Each new connection that takes a transfer up begins a new epoch.
    length : int
        Payload bytes.
    flags : int
        See CLOSING, COMMITTED, MORE and DIGESTED.
    tag : bytes
        16 bytes; empty until the frame is sealed.
    """

    type: FrameType
    transfer_id: int = 0
    sequence: int = 0
    offset: int = 0
    epoch: int = 0
    length: int = 0
    flags: int = 0
    tag: bytes = b""

    def untagged(self) -> bytes:
        """The first 48 bytes of the header, which the tag covers together with the payload."""
        return _FIELDS.pack(MAGIC, VERSION, self.type, self.flags, self.transfer_id, self.sequence, self.offset, self.epoch, self.length, 0)


def digest_of(pieces: Iterable[Buffer]) -> bytes:
    """xxh3_128 of the pieces, one after another."""
    import xxhash

    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def seal(header: FrameHeader, payload: Sequence[Buffer] = ()) -> bytes:
    """The 64 header bytes of a frame, with an xxh3_128 tag. header.length must be that of the payload."""
    untagged = header.untagged()
    return untagged + digest_of([untagged, *payload])


def parse(data: Buffer) -> FrameHeader:
    """The header in 64 bytes, with every field checked. The tag is checked by tags.py. Raises FrameError."""
    if len(data) != HEADER_BYTES:
        raise FrameError(f"a frame header has {HEADER_BYTES} bytes, not {len(data)}")
    magic, version, number, flags, transfer_id, sequence, offset, epoch, length, reserved = _FIELDS.unpack_from(data)
    if magic != MAGIC:
        raise FrameError(f"frame begins with {bytes(magic)!r}, not {MAGIC!r}; the peer does not speak this protocol")
    if version != VERSION:
        raise FrameError(f"peer speaks protocol version {version}, this side {VERSION}; run the same release on both")
    kind = _TYPES.get(number)
    if kind is None:
        raise FrameError(f"frame type {number} is unknown")
    if reserved or flags & ~_FLAGS.get(kind, 0):
        raise FrameError(f"{kind.name} frame has unknown flags {flags} or a reserved field of {reserved}")
    cap = _CAPS.get(kind, META_CAP_BYTES)
    if length > cap:
        raise FrameError(f"{kind.name} frame of {length} bytes is above the cap of {cap}")
    if length == 0 and cap:
        raise FrameError(f"{kind.name} frame is empty")
    if kind in _OF_CONNECTION and (transfer_id or epoch):
        raise FrameError(f"{kind.name} frame names transfer {transfer_id}, epoch {epoch}; it belongs to none")
    if sequence and kind not in _COUNTED:
        raise FrameError(f"{kind.name} frame has sequence {sequence}; only OFFER, DATA, COMMIT and PING are counted")
    if offset and kind is not FrameType.DATA and kind is not FrameType.ACK:
        raise FrameError(f"{kind.name} frame has offset {offset}; only DATA and ACK have one")
    if offset + length > OFFSET_CAP_BYTES:
        raise FrameError(f"{kind.name} frame ends at byte {offset + length}, above the cap of {OFFSET_CAP_BYTES}")
    return FrameHeader(kind, transfer_id, sequence, offset, epoch, length, flags, bytes(data[-TAG_BYTES:]))

"""Tags for a connection that reaches device memory: a payload there is digested on the device and is not copied to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from abkt.transfer.buffers import Piece, Space, on_device
from abkt.transfer.device.digest import device_digest
from abkt.transfer.protocol.frame import DIGESTED, FrameHeader, digest_of
from abkt.transfer.protocol.tags import PlainTags, Receive, damaged_frame


class DeviceTags:
    """Tags over the device digest if any payload byte is on a device, else the tags of PlainTags. They do not stop an attacker.

    The sender decides by where its bytes are, and sets DIGESTED in the header. The receiver can have its memory anywhere, but the device
    digest of host memory is slow.
    """

    def __init__(self) -> None:
        self._plain = PlainTags()

    def seal(self, header: FrameHeader, payload: Sequence[Piece]) -> list[Piece]:
        if not any(map(on_device, payload)):
            return self._plain.seal(header, payload)
        untagged = replace(header, flags=header.flags | DIGESTED).untagged()
        return [untagged + digest_of([untagged, device_digest(payload)]), *payload]

    def open(self, header: FrameHeader, buffers: Sequence[Space], receive: Receive) -> None:
        if not header.flags & DIGESTED:
            self._plain.open(header, buffers, receive)
            return
        receive(buffers)
        if digest_of([header.untagged(), device_digest(buffers)]) != header.tag:
            raise damaged_frame(header)

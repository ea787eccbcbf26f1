"""Tags of a connection that reaches a device's memory: what lies there is digested there (nh.py), and never comes to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from abkt.transfer.device import digest as device_digest
from abkt.transfer.device.pieces import Piece, Space, on_device
from abkt.transfer.protocol.frame import DIGESTED, FrameHeader, digest_of
from abkt.transfer.protocol.tags import Plain, Receive, unfit


class DeviceTags:
    """Finds accidents, not attackers. The sender's side decides by where its bytes lie, and says so in the header; the receiver's may
    be anywhere, though digesting in the host's memory is slow."""

    def __init__(self) -> None:
        self._plain = Plain()

    def seal(self, header: FrameHeader, payload: Sequence[Piece]) -> list[Piece]:
        if not any(map(on_device, payload)):
            return self._plain.seal(header, payload)
        untagged = replace(header, flags=header.flags | DIGESTED).untagged()
        return [untagged + digest_of([untagged, device_digest.digest(payload)]), *payload]

    def open(self, header: FrameHeader, buffers: Sequence[Space], receive: Receive) -> None:
        if not header.flags & DIGESTED:
            self._plain.open(header, buffers, receive)
            return
        receive(buffers)
        if digest_of([header.untagged(), device_digest.digest(buffers)]) != header.tag:
            raise unfit(header)

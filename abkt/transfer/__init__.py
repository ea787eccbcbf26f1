"""Moves bytes between nodes: framed, verified, optionally encrypted, paced, resumable, and cut short or refined while they are on the way.

A prefill node has a `Sender` for each peer, a decode node has one `Receiver`. Both take a `Transport` (see `abkt.transfer.transports`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.transfer.link import PacedLink
    from abkt.transfer.pieces import BufferSink, ByteSink, ByteSource, DevicePieces, PiecesSink, PiecesSource
    from abkt.transfer.protocol.channel import Keepalive
    from abkt.transfer.protocol.key import Key
    from abkt.transfer.protocol.messages import Hello, Offer
    from abkt.transfer.receive.received import Received
    from abkt.transfer.receive.receiver import Receiver
    from abkt.transfer.send.outgoing import Outgoing, RefinementResult, Sent
    from abkt.transfer.send.sender import Sender
    from abkt.transfer.transport import Connection, Listener, PeerError, Transport
    from abkt.transfer.transports.registry import make_transport

__all__ = [
    "BufferSink",
    "ByteSink",
    "ByteSource",
    "Connection",
    "DevicePieces",
    "Hello",
    "Keepalive",
    "Key",
    "Listener",
    "Offer",
    "Outgoing",
    "PacedLink",
    "PeerError",
    "PiecesSink",
    "PiecesSource",
    "Received",
    "Receiver",
    "RefinementResult",
    "Sender",
    "Sent",
    "Transport",
    "make_transport",
]
__getattr__ = exporter(
    __name__,
    {
        "BufferSink": "pieces",
        "ByteSink": "pieces",
        "ByteSource": "pieces",
        "Connection": "transport",
        "DevicePieces": "pieces",
        "Hello": "protocol.messages",
        "Keepalive": "protocol.channel",
        "Key": "protocol.key",
        "Listener": "transport",
        "Offer": "protocol.messages",
        "Outgoing": "send.outgoing",
        "PacedLink": "link",
        "PeerError": "transport",
        "PiecesSink": "pieces",
        "PiecesSource": "pieces",
        "Received": "receive.received",
        "Receiver": "receive.receiver",
        "RefinementResult": "send.outgoing",
        "Sender": "send.sender",
        "Sent": "send.outgoing",
        "Transport": "transport",
        "make_transport": "transports.registry",
    },
)

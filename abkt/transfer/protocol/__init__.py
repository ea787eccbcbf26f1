"""The wire protocol: frames, their tags, the messages in them, the handshake, and the channel that sends and receives frames.

Used by `send` and `receive`, and by tests that speak to a node frame by frame. It imports neither of the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.transfer.protocol.channel import Channel, Keepalive
    from abkt.transfer.protocol.frame import FrameError, FrameHeader, FrameType
    from abkt.transfer.protocol.key import Key
    from abkt.transfer.protocol.messages import Hello, Offer

__all__ = ["Channel", "FrameError", "FrameHeader", "FrameType", "Hello", "Keepalive", "Key", "Offer"]
__getattr__ = exporter(
    __name__,
    {
        "Channel": "channel",
        "FrameError": "frame",
        "FrameHeader": "frame",
        "FrameType": "frame",
        "Hello": "messages",
        "Keepalive": "channel",
        "Key": "key",
        "Offer": "messages",
    },
)

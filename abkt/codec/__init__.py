"""The codec: a sequence's KV to an embedded stream, and any prefix of that stream back to KV. For everything that moves or studies KV."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.codec.codec import Codec, Expanded
    from abkt.codec.stream import Stream

__all__ = ["Codec", "Expanded", "Stream"]
__getattr__ = exporter(__name__, {"Codec": "codec", "Expanded": "codec", "Stream": "stream"})

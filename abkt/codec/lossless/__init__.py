"""KV without loss: floating-point values whose exponents are coded in fewer bits. `stream` codes the KV of a sequence as one message.

For the serving workers, which send these messages, and for benches, which call `LosslessCodec` on blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.codec.lossless.codec import LosslessCodec

__all__ = ["LosslessCodec"]
__getattr__ = exporter(__name__, {"LosslessCodec": "codec"})

"""The entropy coder: the passes of a nested quantiser coded with rANS, for links that are slower than a processor.

`Codec` is the way to use it. oracle.py describes the format of a cell, coder.py codes a whole sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.codec.entropy.coder import EntropyCoder

__all__ = ["EntropyCoder"]
__getattr__ = exporter(__name__, {"EntropyCoder": "coder"})

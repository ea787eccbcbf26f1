"""A serde for LMCache's stores: KV chunks are kept in the codec's fixed format, a quarter to an eighth of their size.

codec.py turns a chunk into bytes and back, and needs no LMCache. plugin.py puts it into LMCache's multi-process mode, and imports LMCache;
docs/vllm.md has the configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.connect.lmcache.codec import ChunkCodec

__all__ = ["ChunkCodec"]
__getattr__ = exporter(__name__, {"ChunkCodec": "codec"})

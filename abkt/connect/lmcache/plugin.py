"""ABKT's serde inside LMCache's multi-process mode. Imported by LMCache through an L2 adapter of type `plugin`; it imports LMCache.

Written against LMCache's interfaces of version 0.5 (Serializer and Deserializer with `key`, register_serde_factory).
"""

from __future__ import annotations

from typing import Any

import torch
from lmcache.v1.distributed.serde.async_processor import AsyncSerdeProcessor
from lmcache.v1.distributed.serde.base import Deserializer, Serializer
from lmcache.v1.distributed.serde.factory import register_serde_factory

from abkt.connect.lmcache.codec import ChunkCodec

NAME = "abkt"
LENGTH_BYTES = 8  # a store keeps whole buffers, so the length of the stream comes first


class AbktSerializer(Serializer):
    """Chunks to bytes."""

    def __init__(self, codec: ChunkCodec) -> None:
        self._codec = codec

    def serialize(self, src: Any, dst: Any, key: Any) -> int:
        data = self._codec.encode(src.tensor)
        size, room = LENGTH_BYTES + len(data), dst.tensor.numel() * dst.tensor.element_size()
        if size > room:
            raise ValueError(f"a chunk needs {size} bytes, and the buffer has {room}")
        target = dst.tensor.flatten().view(torch.uint8)
        target[:size] = torch.frombuffer(bytearray(len(data).to_bytes(LENGTH_BYTES, "little") + data), dtype=torch.uint8)
        return size

    def estimate_serialized_size(self, layout_desc: Any) -> int:
        pairs = zip(layout_desc.shapes, layout_desc.dtypes, strict=True)
        return LENGTH_BYTES + sum(self._codec.size(shape, dtype) for shape, dtype in pairs)


class AbktDeserializer(Deserializer):
    """Bytes to chunks."""

    def __init__(self, codec: ChunkCodec) -> None:
        self._codec = codec

    def deserialize(self, src: Any, dst: Any, key: Any) -> None:
        held = src.tensor.flatten().view(torch.uint8).cpu().numpy().data
        size = int.from_bytes(held[:LENGTH_BYTES], "little")
        if size > len(held) - LENGTH_BYTES:
            raise ValueError(f"a stored chunk says {size} bytes, and holds {len(held) - LENGTH_BYTES}")
        self._codec.decode(held[LENGTH_BYTES : LENGTH_BYTES + size], dst.tensor)


def make(config: dict[str, Any]) -> AsyncSerdeProcessor:
    """The serde of a configuration: bits, head_dim, coder and max_workers. Raises ValueError, one line, for anything else."""
    known = {"type", "bits", "head_dim", "coder", "max_workers"}
    if unknown := sorted(config.keys() - known):
        raise ValueError(f"serde abkt has no {unknown[0]}; it may have {', '.join(sorted(known - {'type'}))}")
    codec = ChunkCodec(**{name: config[name] for name in ("bits", "head_dim", "coder") if name in config})
    return AsyncSerdeProcessor(AbktSerializer(codec), AbktDeserializer(codec), max_workers=int(config.get("max_workers", 1)))


register_serde_factory(NAME, make)

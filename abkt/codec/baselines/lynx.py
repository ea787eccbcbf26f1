"""Lynx (arXiv 2607.01831), 4 + 4: the high nibbles of 8-bit codes are sent first, and the low nibbles refine them.

Assumptions: the code is asymmetric per token and head, with scale and zero in float16; a high nibble without its low nibble is decoded as
the middle of the 16 codes that share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkt.codec.baselines import affine
from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.bits import pack, packed_bytes, unpack


@dataclass(frozen=True)
class LynxCodec(MessageBaseline):
    """refined: whether the message holds the low nibbles as well."""

    name: str
    refined: bool

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        codes, pair = affine.quantise(x.float(), 8)
        parts: list[torch.Tensor | bytes] = [pair, pack(codes >> 4, 4)]
        return [*parts, pack(codes & 15, 4)] if self.refined else parts

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        pair, size = body.take(torch.float16, *shape[:-1], 2), packed_bytes(torch.Size(shape).numel(), 4)
        high = unpack(body.take(torch.uint8, size), 4, shape).float() * 16
        return affine.restore(high + (unpack(body.take(torch.uint8, size), 4, shape) if self.refined else 7.5), pair)

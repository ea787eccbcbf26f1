"""Uniform quantisation per token, the simplest baseline. Each token of a head has a float16 scale and zero: 32 / head_dim bits per
value."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkt.codec.baselines import affine
from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.bits import pack, packed_bytes, unpack


def put_tokens(x: torch.Tensor, bits: int) -> list[torch.Tensor | bytes]:
    """The arrays for x [..., head_dim]: pairs of scale and zero, then the codes."""
    codes, pair = affine.quantise(x.float(), bits)
    return [pair, pack(codes, bits)]


def take_tokens(body: Body, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `put_tokens`, [*shape] float32."""
    pair = body.take(torch.float16, *shape[:-1], 2)
    codes = body.take(torch.uint8, packed_bytes(torch.Size(shape).numel(), bits))
    return affine.restore(unpack(codes, bits, shape), pair)


@dataclass(frozen=True)
class Uniform(MessageBaseline):
    """Asymmetric quantisation between the least and the greatest value of a token and head. bits: 2, 4 or 8."""

    name: str
    bits: int

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        return put_tokens(x, self.bits)

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return take_tokens(body, self.bits, shape)

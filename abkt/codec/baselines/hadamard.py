"""Hadamard-rotated integers, as in QuaRot's KV cache (arXiv 2404.00456): each head's vector is rotated, then quantised per token.

QuaRot rotates K after RoPE and V by Hadamard matrices, and quantises each token of a head asymmetrically, with a float16 scale and zero:
32 / head_dim bits a value beside the codes. Left out: its clipping ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.baselines.rotation import rotation
from abkt.codec.baselines.uniform import put_tokens, take_tokens


@dataclass(frozen=True)
class Hadamard(MessageBaseline):
    """bits: of a code, 1 to 8."""

    name: str
    bits: int

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        return put_tokens(x.float() @ rotation(x.shape[-1], signs=False).T, self.bits)

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return take_tokens(body, self.bits, shape) @ rotation(shape[-1], signs=False)

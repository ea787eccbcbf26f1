"""KIVI (arXiv 2402.02750): K per channel over groups of tokens, V per token over groups of channels, the newest tokens unquantised.

Each group of 32 values has a float16 scale and zero, which cost 1.0 bit per value. Assumptions: tokens that do not fill a group of K stay
in the pool's dtype, like the paper's residual, so up to 31 more tokens of K than of V do; the last group of V is shorter if 32 does not
divide head_dim; a latent (MLA) is coded as K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkt.codec.baselines import affine
from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.bits import pack, packed_bytes, unpack


@dataclass(frozen=True)
class Kivi(MessageBaseline):
    """bits: 2 or 4. group: number of values that share a scale. residual: number of newest tokens that stay in the pool's dtype."""

    name: str
    bits: int
    group: int = 32
    residual: int = 128

    def coded(self, tokens: int, kind: int) -> int:
        """How many of the first tokens are quantised."""
        old = max(0, tokens - self.residual)
        return old - old % self.group if kind == 0 else old

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        parts: list[torch.Tensor | bytes] = []
        for kind in range(x.shape[1]):
            n = self.coded(x.shape[3], kind)
            if n:
                old = x[:, kind, :, :n].float()
                codes, pair = affine.quantise_groups(old if kind else old.transpose(-1, -2), self.bits, self.group)
                parts += [pair, pack(codes, self.bits)]
            parts.append(x[:, kind, :, n:])
        return parts

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        layers, kinds, heads, tokens, dim = shape
        out = torch.empty(shape)
        for kind in range(kinds):
            n = self.coded(tokens, kind)
            if n:
                rows = (layers, heads, n, dim) if kind else (layers, heads, dim, n)
                pair = body.take(torch.float16, *rows[:-1], -(-rows[-1] // self.group), 2)
                codes = unpack(body.take(torch.uint8, packed_bytes(torch.Size(rows).numel(), self.bits)), self.bits, rows)
                old = affine.restore_groups(codes, pair, self.group)
                out[:, kind, :, :n] = old if kind else old.transpose(-1, -2)
            out[:, kind, :, n:] = body.take(dtype, layers, heads, tokens - n, dim)
        return out

"""KIVI (arXiv 2402.02750): K per channel over groups of tokens, V per token over groups of channels, the newest tokens unquantised.

Each group of 32 values has a float16 scale and zero, which cost 1.0 bit per value. After prefill of n tokens the authors' code
(github.com/jy-yuan/KIVI, models/llama_kivi.py) keeps the last n mod 128 tokens of K, and the last 128 of V; so does this. Assumptions: the
last group of V is shorter if 32 does not divide head_dim; a latent (MLA) is coded as K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkt.codec.baselines import affine
from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.bits import pack, packed_bytes, unpack


@dataclass(frozen=True)
class Kivi(MessageBaseline):
    """bits: 2 or 4. group: number of values that share a scale. residual: the newest tokens % residual of K and the newest residual tokens
    of V stay in the pool's dtype; a multiple of group."""

    name: str
    bits: int
    group: int = 32
    residual: int = 128

    def coded(self, tokens: int, kind: int) -> int:
        """How many of the first tokens are quantised."""
        return tokens - tokens % self.residual if kind == 0 else max(0, tokens - self.residual)

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

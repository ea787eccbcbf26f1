"""A precision for each (layer, K or V, head): KIVI's codes of 1 to 8 bits, or only the mean of each channel.

Where a head has only its mean, the first tokens travel exactly all the same: they are attention sinks, which a mean would destroy.

The base of two rivals: KVTuner's pairs of precisions (calibrated/kvtuner.py), and the simple rule "leave out the heads that do not matter"
(calibrated/matter.py). The precisions are calibrated, so that they cost no bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.baselines import affine
from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.bits import pack, packed_bytes, unpack

SINKS = 4


@dataclass(frozen=True)
class LayerWise(MessageBaseline):
    """bits: for each layer and for K and V, the bits of each head; 0: the mean of each channel in float16. group: number of values that
    share a scale. residual: as in KIVI."""

    name: str
    bits: tuple[tuple[tuple[int, ...], ...], ...]
    group: int = 32
    residual: int = 32

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        if np.shape(self.bits) != tuple(x.shape[:3]):
            raise ValueError(f"KV of (layers, kinds, heads) = {tuple(x.shape[:3])} does not fit {self.name}: {np.shape(self.bits)}")
        if not x.isfinite().all():
            raise ValueError(f"KV is not finite; it cannot be coded by {self.name}")
        parts: list[torch.Tensor | bytes] = []
        for layer, kind, head in np.ndindex(x.shape[:3]):
            part, bits = x[layer, kind, head], self.bits[layer][kind][head]
            if not bits:
                parts += [part[:SINKS], (part[SINKS:] if len(part) > SINKS else part).float().mean(0).half()]
                continue
            n = self.coded(len(part), kind)
            if n:
                old = part[:n].float()
                codes, pair = affine.quantise_groups(old if kind else old.T, bits, self.group)
                parts += [pair, pack(codes, bits)]
            parts.append(part[n:])
        return parts

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        tokens, dim = shape[3:]
        out = torch.empty(shape)
        for layer, kind, head in np.ndindex(shape[:3]):
            bits, part = self.bits[layer][kind][head], out[layer, kind, head]
            if not bits:
                part[:SINKS] = body.take(dtype, min(SINKS, tokens), dim).float()
                part[SINKS:] = body.take(torch.float16, dim).float()
                continue
            n = self.coded(tokens, kind)
            if n:
                rows = (n, dim) if kind else (dim, n)
                pair = body.take(torch.float16, rows[0], -(-rows[1] // self.group), 2)
                codes = unpack(body.take(torch.uint8, packed_bytes(n * dim, bits)), bits, rows)
                old = affine.restore_groups(codes, pair, self.group)
                part[:n] = old if kind else old.T
            part[n:] = body.take(dtype, tokens - n, dim)
        return out

    def coded(self, tokens: int, kind: int) -> int:
        """How many of the first tokens are quantised, as in KIVI."""
        return tokens - tokens % self.residual if kind == 0 else max(0, tokens - self.residual)


def losses(x: torch.Tensor, fisher: torch.Tensor, bits: int, group: int = 32) -> torch.Tensor:
    """What coding every head with `bits` bits costs by the Fisher information, [layers, 2, heads], as `fisher` is.

    x: KV [layers, 2, heads, tokens, dim].
    """
    x = x.float()
    if not bits:
        error = x[..., SINKS:, :] - x[..., SINKS:, :].mean(3, keepdim=True)
    else:
        k, v = x[:, 0].mT, x[:, 1]
        k = affine.restore_groups(*affine.quantise_groups(k, bits, group), group).mT
        v = affine.restore_groups(*affine.quantise_groups(v, bits, group), group)
        error = x - torch.stack((k, v), 1)
    return error.square().mean((3, 4)) * fisher

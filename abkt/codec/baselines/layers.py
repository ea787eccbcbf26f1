"""One precision per layer, chosen by its mean key norm, the importance of ABKT's reference implementation (github.com/354100117/ABKT).

Assumptions: layers are ranked by that norm; the upper third has 8 bits, the middle 4, the lowest 2, quantised per token and head.
A layer's precision takes one byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.baselines.uniform import put_tokens, take_tokens

PRECISIONS = (8, 4, 2)


@dataclass(frozen=True)
class Layers(MessageBaseline):
    name: str = "layer-norm"

    def precisions(self, x: torch.Tensor) -> torch.Tensor:
        """The bits of each layer, [layers] uint8."""
        norms = x[:, 0].float().norm(dim=-1).mean((1, 2))
        place = norms.argsort(descending=True, stable=True).argsort()
        return torch.tensor(PRECISIONS, dtype=torch.uint8)[place * 3 // len(norms)]

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        bits = self.precisions(x)
        parts: list[torch.Tensor | bytes] = [bits]
        for layer, b in zip(x, bits.tolist(), strict=True):
            parts += put_tokens(layer, b)
        return parts

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        bits = body.take(torch.uint8, shape[0]).tolist()
        if not set(bits) <= set(PRECISIONS):
            raise ValueError(f"message is damaged: layers of {sorted(set(bits))} bits, and only {PRECISIONS} are known")
        return torch.stack([take_tokens(body, b, shape[1:]) for b in bits])

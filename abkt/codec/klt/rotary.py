"""How a model rotates K with the position (RoPE), and K without that rotation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

AS_CACHED, HALVES, PAIRS = 0, 1, 2
"""Which channels rotate together: none (K is taken as it is cached), c with c + rotated / 2 (Llama), or 2c with 2c + 1 (GPT-J)."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """The rotation of each layer's K.

    styles: [layers] uint8, AS_CACHED, HALVES or PAIRS. frequencies: [layers, rotated / 2] float32, radians per token; 0 beyond those that a
    layer has. The first 2 * frequencies.shape[1] channels rotate, the others do not.
    """

    styles: torch.Tensor
    frequencies: torch.Tensor

    def turned(self, x: torch.Tensor, layer: int, back: bool = False, first: int = 0) -> torch.Tensor:
        """K of a layer [heads, tokens, head_dim], rotated by the positions from `first` on; or rotated back."""
        style = int(self.styles[layer])
        if style == AS_CACHED:
            return x
        tokens, width = x.shape[-2], 2 * self.frequencies.shape[1]
        angles = torch.arange(first, first + tokens, dtype=torch.float64)[:, None] * self.frequencies[layer].double()
        cos, sin = angles.cos().float(), angles.sin().float() * (-1 if back else 1)
        rotated, rest = x[..., :width].float(), x[..., width:]
        a, b = (rotated[..., : width // 2], rotated[..., width // 2 :]) if style == HALVES else (rotated[..., 0::2], rotated[..., 1::2])
        c, d = a * cos - b * sin, b * cos + a * sin
        turned = torch.cat((c, d), -1) if style == HALVES else torch.stack((c, d), -1).flatten(-2)
        return torch.cat((turned, rest), -1) if rest.shape[-1] else turned

    def part(self, first: int, stop: int) -> Rotary:
        return Rotary(self.styles[first:stop], self.frequencies[first:stop])

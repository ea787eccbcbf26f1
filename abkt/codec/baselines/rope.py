"""Rotary position embedding (RoPE), undone and done again: keys as they were before the rotation, from the keys of a cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rope:
    """thetas: base of the rotation of each layer. Channels i and i + head_dim / 2 are a pair, as in Llama, Qwen and Gemma."""

    thetas: tuple[float, ...]

    def undone(self, keys: torch.Tensor) -> torch.Tensor:
        """Keys [layers, heads, tokens, head_dim] of positions 0, 1, … before the rotation, float32."""
        return self._turned(keys, -1.0)

    def done(self, keys: torch.Tensor) -> torch.Tensor:
        """The inverse of `undone`."""
        return self._turned(keys, 1.0)

    def _turned(self, keys: torch.Tensor, sign: float) -> torch.Tensor:
        layers, _, tokens, dim = keys.shape
        if layers != len(self.thetas) or dim % 2:
            raise ValueError(f"keys of {layers} layers and head_dim {dim} do not fit RoPE of {len(self.thetas)} layers")
        power = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        rate = torch.tensor(self.thetas, dtype=torch.float64)[:, None] ** -power  # [layers, dim / 2]
        angle = rate[:, None, None] * torch.arange(tokens, dtype=torch.float64)[:, None]
        cos, sin = angle.cos().float(), sign * angle.sin().float()
        a, b = keys.float().split(dim // 2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def unrotated(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """KV [layers, 2, heads, tokens, head_dim] with keys before RoPE, float32."""
    return torch.stack((rope.undone(x[:, 0]), x[:, 1].float()), 1)


def rotated(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """The inverse of `unrotated`."""
    return torch.stack((rope.done(x[:, 0]), x[:, 1].float()), 1)

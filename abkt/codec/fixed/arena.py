"""Memory of a device that is taken once and used again by every sequence; it grows with the longest."""

from __future__ import annotations

import math

import torch


class Arena:
    """Named buffers on one device. A buffer keeps its memory, and what the last sequence left in it, until a longer one is asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The buffer `name` as a tensor of this shape. It shares memory with what was taken under this name before."""
        count = math.prod(shape) * dtype.itemsize
        if name not in self._held or len(self._held[name]) < count:
            self._held[name] = torch.zeros(-(-count // 16) * 16, dtype=torch.uint8, device=self.device)
        return self._held[name][:count].view(dtype).view(shape)

    @property
    def held_bytes(self) -> int:
        return sum(len(buffer) for buffer in self._held.values())

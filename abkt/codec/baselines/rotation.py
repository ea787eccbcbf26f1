"""Rotations that spread a vector's energy over all its channels: the Hadamard transform with random signs."""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache
def rotation(dim: int, seed: int = 0, signs: bool = True) -> torch.Tensor:
    """An orthogonal matrix [dim, dim] float32: Hadamard blocks (of the largest power of two that divides dim), with random signs.

    signs: False for the plain Hadamard transform.
    """
    block = dim & -dim
    h = torch.ones(1, 1)
    while len(h) < block:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    whole = torch.block_diag(*[h / block**0.5] * (dim // block))
    if not signs:
        return whole
    sign = torch.randint(0, 2, (dim,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return whole * sign

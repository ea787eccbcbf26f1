"""Asymmetric min/max quantisation of the last axis, with a scale and a zero in float16 for each row."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def quantise(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise x [..., n] float32. Returns codes [..., n] uint8, and a float16 scale and zero for each row, [..., 2].

    The codes are computed with the rounded scale and zero. Raises ValueError if float16 cannot hold a row's range.
    """
    low, high = x.amin(-1), x.amax(-1)
    pair = torch.stack([(high - low) / (2**bits - 1), low], -1).half()
    if not pair.isfinite().all():
        raise ValueError("KV is not finite, or beyond what a float16 scale and zero can hold; send it raw or lossless")
    scale, zero = pair.float().unbind(-1)
    codes = ((x - zero[..., None]) / torch.where(scale > 0, scale, 1.0)[..., None]).round().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), pair


def restore(codes: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
    """The inverse of `quantise`, [..., n] float32. codes: [..., n] of any dtype. pair: [..., 2] float16."""
    scale, zero = pair.float().unbind(-1)
    return codes.float() * scale[..., None] + zero[..., None]


def grouped(x: torch.Tensor, size: int) -> torch.Tensor:
    """Reshape [..., n] to [..., groups, size]. A short last group is filled with its last value, which changes no minimum or maximum."""
    short = -x.shape[-1] % size
    if short:
        x = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], short)], -1)
    return x.unflatten(-1, (-1, size))


def spread(pair: torch.Tensor, size: int, n: int) -> torch.Tensor:
    """Repeat the pair of each group, [..., groups, 2], for all values of the group: [..., n, 2]."""
    return pair.repeat_interleave(size, -2)[..., :n, :]


def quantise_groups(x: torch.Tensor, bits: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `quantise`, by groups of `size` along the last axis: codes [..., n], pairs [..., groups, 2]."""
    codes, pair = quantise(grouped(x, size), bits)
    return codes.flatten(-2)[..., : x.shape[-1]], pair


def restore_groups(codes: torch.Tensor, pair: torch.Tensor, size: int) -> torch.Tensor:
    """The inverse of `quantise_groups`, [..., n] float32."""
    n = codes.shape[-1]
    full = F.pad(codes.float(), (0, -n % size)).unflatten(-1, (-1, size))
    return restore(full, pair).flatten(-2)[..., :n]

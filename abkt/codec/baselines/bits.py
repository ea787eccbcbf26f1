"""Codes of 1, 2, 4 or 8 bits to bytes and back: the first code of a byte in its low bits, the last byte filled up with 0."""

from __future__ import annotations

import torch


def packed_bytes(count: int, bits: int) -> int:
    """The bytes that `count` codes take."""
    return -(-count * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """codes: uint8 of any shape, each below 2**bits. Returns [packed_bytes] uint8."""
    flat, each = codes.reshape(-1), 8 // bits
    full = torch.zeros(packed_bytes(flat.numel(), bits), each, dtype=torch.uint8)
    full.view(-1)[: flat.numel()] = flat
    out = full[:, 0].clone()
    for i in range(1, each):
        out |= full[:, i] << (bits * i)
    return out


def unpack(data: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """What `pack` was given, [*shape] uint8."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    codes = (data[:, None] >> shifts) & (2**bits - 1)
    return codes.reshape(-1)[: torch.Size(shape).numel()].reshape(shape)

"""Codes of 1 to 8 bits as bytes, and back. The first code is in the lowest bits of the first byte; the last byte is padded with 0."""

from __future__ import annotations

import numpy as np
import torch


def packed_bytes(count: int, bits: int) -> int:
    """The bytes that `count` codes take."""
    return -(-count * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes, uint8 of any shape and each below 2**bits, into [packed_bytes] uint8."""
    planes = np.unpackbits(codes.reshape(-1, 1).numpy(), axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(planes.reshape(-1), bitorder="little"))


def unpack(data: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `pack`: codes, [*shape] uint8."""
    count = torch.Size(shape).numel()
    planes = np.unpackbits(data.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy(np.packbits(planes, axis=1, bitorder="little").reshape(shape))

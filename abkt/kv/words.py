"""Blocks of KV as the words that a copy moves, whatever the dtype of the pool."""

from __future__ import annotations

from math import gcd

import torch

WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}  # by their size in bytes


def joined(*views: torch.Tensor) -> list[torch.Tensor]:
    """Views [blocks, pieces, bytes], as [blocks, 1, pieces * bytes] if the pieces of a block are adjacent in all of them."""
    adjacent = all(view.stride(1) == view.shape[2] for view in views)
    return [view.flatten(1)[:, None] if adjacent else view for view in views]


def word_bytes(widest: int, *views: torch.Tensor) -> int:
    """Bytes of the widest word, a power of 2 up to `widest`, to which the starts and sizes of all pieces of these views are aligned."""
    return gcd(widest, *(part for view in views for part in (view.shape[2], view.data_ptr(), view.storage_offset())))

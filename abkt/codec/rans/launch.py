"""Launches of the Triton kernels of rANS. They never wait for the GPU, so a CUDA graph can hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton

from abkt.codec.rans.kernels import decode_streams, encode_streams, join_streams
from abkt.codec.rans.oracle import checked, most_bytes

STREAMS = 16  # per program
LAUNCH = {"STREAMS": STREAMS, "num_warps": 4}
COPIED = {"BYTES": 1024, "num_warps": 4}


@dataclass(frozen=True, slots=True)
class RansTables:
    """Shares as the kernels read them. coding: int64 [contexts, alphabet], inverse, start and share in 32, 16 and 16 bits. intervals: int32
    of the same shape, start and share. owner: uint8 [contexts, 4096], the symbol of each share."""

    coding: torch.Tensor
    intervals: torch.Tensor
    owner: torch.Tensor

    @classmethod
    def of(cls, shares: np.ndarray, device: torch.device) -> RansTables:
        """shares: [contexts, alphabet] uint16, as oracle.encode takes them. Raises ValueError for others."""
        nothing = np.zeros((0, 0), dtype=np.uint8)
        checked(nothing, nothing, shares)
        coding, intervals = entries_of(shares)
        owner = np.stack([np.repeat(np.arange(len(row), dtype=np.uint8), row) for row in shares])
        return cls(*(torch.from_numpy(table).to(device) for table in (coding, intervals, owner)))


def entries_of(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RansTables.coding and RansTables.intervals. The inverse is 2**32 / share, rounded down, so a quotient computed with it is at most 1
    too small."""
    share = shares.astype(np.int64)
    intervals = share.cumsum(1) - share << 16 | share
    inverse = np.where(share > 0, np.minimum((1 << 32) // np.maximum(share, 1), 2**32 - 1), 0).astype(np.uint64)
    return (inverse << 32 | intervals.astype(np.uint64)).view(np.int64), intervals.astype(np.int32)


@dataclass(frozen=True, slots=True)
class Streams:
    """Coded streams. body: uint8, streams end to end from its beginning, with capacity for all at their longest. sizes: int64 [streams],
    bytes of each. failed: [streams] bool, streams that exceed their capacity or have a symbol without a share; their sizes are 0. ends:
    int64 [streams], running sums of sizes."""

    body: torch.Tensor
    sizes: torch.Tensor
    ends: torch.Tensor
    failed: torch.Tensor


def encode(symbols: torch.Tensor, contexts: torch.Tensor, tables: RansTables, capacity_bytes: int | None = None) -> Streams:
    """The bytes of oracle.encode, on the device of the symbols. symbols, contexts: [streams, n] uint8, contiguous. capacity_bytes: the most
    bytes of a stream; a longer one fails. Without it every stream fits. Nothing waits for the GPU."""
    streams, n = symbols.shape
    capacity = most_bytes(n) if capacity_bytes is None else capacity_bytes // 2 * 2
    slots = torch.empty(streams, capacity, dtype=torch.uint8, device=symbols.device)
    sizes = torch.zeros(streams, dtype=torch.int64, device=symbols.device)
    if symbols.numel():
        encode_streams[(triton.cdiv(streams, STREAMS),)](
            symbols, contexts, tables.coding, slots.view(torch.int16), sizes, streams, n, *tables.coding.shape, capacity // 2, **LAUNCH
        )  # fmt: skip
    failed = (sizes < 0) | (sizes > capacity)
    sizes = sizes.masked_fill(failed, 0)
    ends, body = sizes.cumsum(0), torch.empty_like(slots).view(-1)
    if symbols.numel():
        join_streams[(streams,)](slots, sizes, ends, body, capacity, **COPIED)
    return Streams(body, sizes, ends, failed)


def decode(
    data: torch.Tensor, offsets: torch.Tensor, sizes: torch.Tensor, n: int, contexts: torch.Tensor, tables: RansTables
) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols [streams, n] uint8 of the streams in `data` (uint8) at offsets with sizes (int64 [streams]), and which of them are damaged,
    [streams] bool. As oracle.decode, except that a damaged stream gives meaningless symbols. Nothing waits for the GPU."""
    symbols = torch.empty_like(contexts)
    if not n:
        return symbols, sizes != 0
    damaged = torch.empty(len(sizes), dtype=torch.bool, device=data.device)
    if len(sizes):
        decode_streams[(triton.cdiv(len(sizes), STREAMS),)](
            data, len(data), offsets, sizes, contexts, tables.owner, tables.intervals, symbols, damaged.view(torch.uint8),
            len(sizes), n, *tables.intervals.shape, **LAUNCH,
        )  # fmt: skip
    return symbols, damaged

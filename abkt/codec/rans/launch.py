"""The Triton kernels of rANS: launches that never wait for the GPU, so a CUDA graph can hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton

from abkt.codec.rans.kernels import decode_streams, encode_streams, join_streams
from abkt.codec.rans.oracle import checked, most_bytes

STREAMS = 16  # of a program
LAUNCH = {"STREAMS": STREAMS, "num_warps": 4}
COPIED = {"BYTES": 1024, "num_warps": 4}


@dataclass(frozen=True, slots=True)
class RansTables:
    """Shares as the kernels read them. coding: int64 [contexts, alphabet], inverse, start and share in 32, 16 and 16 bits. intervals:
    int32 there, start and share. owner: uint8 [contexts, 4096], the symbol of each share."""

    coding: torch.Tensor
    intervals: torch.Tensor
    owner: torch.Tensor

    @classmethod
    def of(cls, shares: np.ndarray, device: torch.device) -> RansTables:
        """shares: [contexts, alphabet] uint16, as rans.encode takes them. Raises ValueError for others."""
        nothing = np.zeros((0, 0), dtype=np.uint8)
        checked(nothing, nothing, shares)
        coding, intervals = entries_of(shares)
        owner = np.stack([np.repeat(np.arange(len(row), dtype=np.uint8), row) for row in shares])
        return cls(*(torch.from_numpy(table).to(device) for table in (coding, intervals, owner)))


def entries_of(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tables.coding and Tables.intervals. A quotient that the inverse, 2**32 / share without its fraction, gives is at most 1 too small."""
    share = shares.astype(np.int64)
    intervals = share.cumsum(1) - share << 16 | share
    inverse = np.where(share > 0, np.minimum((1 << 32) // np.maximum(share, 1), 2**32 - 1), 0).astype(np.uint64)
    return (inverse << 32 | intervals.astype(np.uint64)).view(np.int64), intervals.astype(np.int32)


@dataclass(frozen=True, slots=True)
class Streams:
    """body: uint8, streams end to end from its beginning; it has room for all at their longest. sizes: int64 [streams], bytes of each;
    0 where `failed` [streams] bool, for want of room or of a share. ends: int64 [streams], running sums of sizes."""

    body: torch.Tensor
    sizes: torch.Tensor
    ends: torch.Tensor
    failed: torch.Tensor


def encode(symbols: torch.Tensor, contexts: torch.Tensor, tables: RansTables, room_bytes: int | None = None) -> Streams:
    """The bytes of rans.encode, where the symbols are. symbols, contexts: [streams, n] uint8, contiguous. room_bytes: of a stream; one
    that is longer fails. Without it there is room for any. Nothing waits for the GPU."""
    streams, n = symbols.shape
    room = most_bytes(n) if room_bytes is None else room_bytes // 2 * 2
    slots = torch.empty(streams, room, dtype=torch.uint8, device=symbols.device)
    sizes = torch.zeros(streams, dtype=torch.int64, device=symbols.device)
    if symbols.numel():
        encode_streams[(triton.cdiv(streams, STREAMS),)](
            symbols, contexts, tables.coding, slots.view(torch.int16), sizes, streams, n, *tables.coding.shape, room // 2, **LAUNCH
        )  # fmt: skip
    failed = (sizes < 0) | (sizes > room)
    sizes = sizes.masked_fill(failed, 0)
    ends, body = sizes.cumsum(0), torch.empty_like(slots).view(-1)
    if symbols.numel():
        join_streams[(streams,)](slots, sizes, ends, body, room, **COPIED)
    return Streams(body, sizes, ends, failed)


def decode(
    data: torch.Tensor, offsets: torch.Tensor, sizes: torch.Tensor, n: int, contexts: torch.Tensor, tables: RansTables
) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols [streams, n] uint8 of the streams in `data` (uint8) at offsets with sizes (int64 [streams]), and which are damaged, [streams]
    bool: as rans.decode, but that symbols of a damaged stream are there, and mean nothing. Nothing waits for the GPU."""
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

"""The sums of digest_oracle.py on a GPU, for all pieces in one launch.

A program sums STEP words of one piece. A thread reads 16 bytes at a time, in place. Keys are computed where they are used, so only the
payload is read. Not tuned on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from abkt.transfer.device.digest_oracle import DIGESTS, MIX, SPREAD, WORD_BYTES

STEP = 2048  # words a program
WARPS = 4

_SPREAD = tl.constexpr(SPREAD)
_MIX = tl.constexpr(MIX[0])
_MIX_AGAIN = tl.constexpr(MIX[1])


@triton.jit
def _key(place):
    key = place.to(tl.uint32) * tl.full((), _SPREAD, tl.uint32)
    key = (key ^ (key >> 16)) * tl.full((), _MIX, tl.uint32)
    key = (key ^ (key >> 13)) * tl.full((), _MIX_AGAIN, tl.uint32)
    return key ^ (key >> 16)


@triton.jit
def _products(low, high, place, inside):
    """32 x 32 bit products in 64 bits, summed. inside: 1 for a word, 0 past the end, where the keys alone would add something."""
    first, second = (low + _key(place)).to(tl.uint64), (high + _key(place + 1)).to(tl.uint64)
    return tl.sum((first * second).to(tl.int64, bitcast=True) * inside, 0)


@triton.jit
def add_sums(table, found, STEP: tl.constexpr):
    """table: int64 [programs, 3]: a part's address, its first word's index in the payload, its words. found: int64 [2], zeroed before."""
    row = table + tl.program_id(0) * 3
    address, start, words = tl.load(row), tl.load(row + 1), tl.multiple_of(tl.load(row + 2), 2)
    part = tl.multiple_of(address.to(tl.pointer_type(tl.int64)), 16)
    lane = tl.arange(0, STEP)
    held = lane < words
    word = tl.load(part + lane, mask=held, other=0)
    low, high, inside = word.to(tl.uint32), (word >> 32).to(tl.uint32), held.to(tl.int64)
    place = (start.to(tl.uint32) + lane.to(tl.uint32)) * 4
    tl.atomic_add(found, _products(low, high, place, inside))
    tl.atomic_add(found + 1, _products(low, high, place + 2, inside))


def sums_of(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Both sums of the parts, one after another: int64 [2]. The work is enqueued; nothing waits for the GPU.

    parts: uint8 on one GPU, each aligned to 16 bytes and a multiple of 16 bytes long.
    """
    device = parts[0].device
    rows = table_of([(part.data_ptr(), len(part)) for part in parts])
    table = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    found = torch.zeros(DIGESTS, dtype=torch.int64, device=device)
    add_sums[(len(rows),)](table, found, STEP=STEP, num_warps=WARPS)
    return found


def table_of(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """One row for each program; parts: (address, bytes)."""
    rows, first = [], 0
    for address, size in parts:
        words = size // WORD_BYTES
        for start in range(0, words, STEP):
            rows.append((address + start * WORD_BYTES, first + start, min(STEP, words - start)))
        first += words
    return rows

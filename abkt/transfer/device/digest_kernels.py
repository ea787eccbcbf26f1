"""nh.sums on a GPU: a program sums STEP words of one piece, read 16 bytes a thread at a time, where they are; one launch for all pieces.

Keys are made where they are used, so nothing but the payload is read. Not tuned on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from abkt.transfer.device import digest as device_digest

STEP = 2048  # words a program
WARPS = 4

_SPREAD = tl.constexpr(device_digest.SPREAD)
_MIX = tl.constexpr(device_digest.MIX[0])
_MIX_AGAIN = tl.constexpr(device_digest.MIX[1])


@triton.jit
def _key(place):
    key = place.to(tl.uint32) * tl.full((), _SPREAD, tl.uint32)
    key = (key ^ (key >> 16)) * tl.full((), _MIX, tl.uint32)
    key = (key ^ (key >> 13)) * tl.full((), _MIX_AGAIN, tl.uint32)
    return key ^ (key >> 16)


@triton.jit
def _products(low, high, place, inside):
    """32 bits by 32 in 64, summed. inside: 1 for a word, 0 for a place past the end, whose keys would add something."""
    first, second = (low + _key(place)).to(tl.uint64), (high + _key(place + 1)).to(tl.uint64)
    return tl.sum((first * second).to(tl.int64, bitcast=True) * inside, 0)


@triton.jit
def add_sums(table, found, STEP: tl.constexpr):
    """table: int64 [programs, 3]: address of a part, its first word's place in the payload, its words. found: int64 [2], zeros before."""
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
    """nh.sums of the parts one after another: uint8 on one GPU, each aligned and a multiple of 16 bytes. Enqueued; nothing waits."""
    device = parts[0].device
    rows = table_of([(part.data_ptr(), len(part)) for part in parts])
    table = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    found = torch.zeros(device_digest.DIGESTS, dtype=torch.int64, device=device)
    add_sums[(len(rows),)](table, found, STEP=STEP, num_warps=WARPS)
    return found


def table_of(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """A row a program, of parts (address, bytes)."""
    rows, first = [], 0
    for address, size in parts:
        words = size // device_digest.WORD_BYTES
        for start in range(0, words, STEP):
            rows.append((address + start * device_digest.WORD_BYTES, first + start, min(STEP, words - start)))
        first += words
    return rows

"""The copies of copy.py in Triton: a program moves up to 1,024 words of one piece of a block, of 16 bytes each where alignment allows.

A thread moves four words, and reads all of them before it writes the first; only the block number is read earlier. A chunk of 16 KiB per
program leaves enough registers and threads for many programs on a multiprocessor, and runs of any length share one launch.

Pieces of less than 2 KiB are not tuned: a program moves only one of them.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from abkt.kv.words import WORDS, joined, word_bytes

WIDEST = 16  # bytes of a word: four 32-bit elements that one thread moves at once
CHUNK = 1024  # words


@triton.jit
def _start(memory, blocks, slot, block_words, piece_words, VECTOR: tl.constexpr):
    """Where this program's piece begins. blocks: the block of each slot; None if block and slot have the same number."""
    if blocks is None:
        block = slot.to(tl.int64)
    else:
        block = tl.load(blocks + slot)
    return memory + (block * block_words + tl.program_id(1).to(tl.int64) * piece_words) * VECTOR


@triton.jit
def move_blocks(
    source, destination, source_blocks, destination_blocks,
    source_block_words, source_piece_words, destination_block_words, destination_piece_words, words, chunks,
    VECTOR: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One chunk of one piece. words: of a piece; strides and words count VECTOR elements each."""
    slot, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    word = chunk * LANES + tl.arange(0, LANES)
    within, mask = word[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :], (word < words)[:, None]
    sent = _start(source, source_blocks, slot, source_block_words, source_piece_words, VECTOR)
    received = _start(destination, destination_blocks, slot, destination_block_words, destination_piece_words, VECTOR)
    tl.store(received + within, tl.load(sent + within, mask=mask), mask=mask)


def launch(
    source: torch.Tensor, destination: torch.Tensor, source_blocks: torch.Tensor | None, destination_blocks: torch.Tensor | None
) -> None:
    """copy.move on a GPU, enqueued on the source's current CUDA stream; nothing waits. Raises ValueError if the source's GPU cannot reach
    the destination."""
    slots = len(source if source_blocks is None else source_blocks)
    source, destination = joined(source, destination)
    width = word_bytes(WIDEST, source, destination)
    element, strides = WORDS[min(width, 4)], [stride // width for view in (source, destination) for stride in view.stride()[:2]]
    words, options = source.shape[2] // width, constants(source.shape[2], width)
    chunks = triton.cdiv(words, options["LANES"])
    here, there = source.device, destination.device
    if here != there:
        open_peer(here, there)
        torch.cuda.current_stream(here).wait_stream(torch.cuda.current_stream(there))
    with torch.cuda.device_of(source):
        move_blocks[(slots * chunks, source.shape[1])](
            source.view(element), destination.view(element), source_blocks, destination_blocks, *strides, words, chunks, **options
        )
    if here != there:
        torch.cuda.current_stream(there).wait_stream(torch.cuda.current_stream(here))


def constants(piece_bytes: int, width: int) -> dict[str, int]:
    """Compile-time arguments and launch options for pieces of `piece_bytes` bytes, in words of `width` bytes."""
    lanes = min(CHUNK, triton.next_power_of_2(piece_bytes // width))
    return {"VECTOR": max(1, width // 4), "LANES": lanes, "num_warps": max(1, min(8, lanes // 128))}


@cache
def open_peer(source: torch.device, destination: torch.device) -> None:
    """Let kernels on one GPU write the memory of another. Raises ValueError where the machine cannot."""
    if not torch.cuda.can_device_access_peer(source, destination):
        raise ValueError(f"{source} cannot write the memory of {destination}; gather, send and scatter instead")
    torch.empty(1, device=destination).copy_(torch.empty(1, device=source))  # torch enables the access at its first copy

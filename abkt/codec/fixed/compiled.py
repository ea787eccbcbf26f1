"""The compiled backend for CPUs: compiled.cpp, built once with g++ for this machine.

It gathers, codes, measures and packs a cell while the cell is in the cache. That is several times faster than one pass over whole tensors
after another, even if each pass is compiled.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path

import numpy as np
import torch

from abkt.codec.cells import LANES, Cells, part_of
from abkt.codec.coder import CodedCells
from abkt.codec.compile import FLAGS, library_or_none
from abkt.codec.fixed.backend import Arrived
from abkt.codec.fixed.quantize import LIMITS, SHARES
from abkt.spec import KVLayout

SOURCE = Path(__file__).with_name("compiled.cpp")
DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
RULES = np.array([*LIMITS, *(share for row in SHARES for share in row)], dtype=np.int32)  # as struct Rules

log = logging.getLogger("abkt.codec")


class CompiledBackend:
    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def describe(self) -> str:
        return f"compiled (g++ {' '.join(FLAGS[1:3])}, one thread)"

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells, centres: np.ndarray) -> CodedCells:
        layers, kinds, heads, _ = cells.shape
        body = torch.empty(cells.body_bytes, dtype=torch.uint8)
        errors = np.empty((cells.passes + 1, cells.count))
        classes = np.empty(cells.count, dtype=np.uint8)
        deviation = np.empty((layers, kinds, heads))
        shape, table = _shape(cells), np.array(blocks, dtype=np.int64)
        given = (_at(shape), _at(RULES), DTYPES[data.dtype], _tensor_at(data), _at(table), _at(centres))
        slots = (_at(cells.offsets), _at(cells.sizes), _tensor_at(body))
        self.library.abkt_encode(*given, *slots, _at(errors), _at(classes), _at(deviation))
        return CodedCells(body, errors, classes, deviation)

    def expand(self, arrived: Arrived, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        shape, table = _shape(cells), np.array(blocks, dtype=np.int64)
        given = (_at(shape), _at(RULES), DTYPES[data.dtype], _tensor_at(data), _at(table), _at(arrived.centres))
        self.library.abkt_expand(*given, *(_at(a) for a in (arrived.offsets, arrived.wire, arrived.present, arrived.classes)))

    def checksums(self, buffer: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        offsets, sizes = np.ascontiguousarray(offsets), np.ascontiguousarray(sizes)
        sums = np.empty(offsets.shape, dtype=np.uint32)
        self.library.abkt_checksums(_at(buffer), ctypes.c_int64(offsets.size), _at(offsets), _at(sizes), _at(sums))
        return sums


def _at(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def _tensor_at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _shape(cells: Cells) -> np.ndarray:
    layout = cells.layout
    layers, kinds, _, tiles = cells.shape
    heads, block, parts = layout.model.kv_heads, layout.block_tokens, layout.model.head_dim // cells.dim
    tile_blocks = cells.tile_tokens // block
    fields = (layers, kinds, heads, parts, block, cells.dim, tile_blocks, tiles, cells.coded_blocks, cells.depth_bits, cells.passes)
    return np.array(fields, dtype=np.int64)


def for_layout(layout: KVLayout, required: bool = False) -> CompiledBackend | None:
    """The compiled backend if it can code this layout on this machine, else None; or, if it is required, ValueError instead of None."""
    dim = part_of(layout.model.head_dim)
    if dim % LANES == 0:
        compiled = load()
        if compiled is None and required:
            raise ValueError("the compiled backend needs a working g++, and none was found; install it, or take backend auto or oracle")
        return compiled
    if required:
        raise ValueError(f"the compiled backend needs a head_dim that is a multiple of {LANES}, not {dim}; take backend auto or oracle")
    log.warning("head_dim %d is not a multiple of %d; the torch oracle codes it, about 50 times slower than compiled code", dim, LANES)
    return None


@cache
def load() -> CompiledBackend | None:
    """The compiled backend; or None, with one warning in the log that gives the reason, if g++ is missing or cannot build it."""
    found = library_or_none(SOURCE, "the torch oracle runs in its place, about 50 times slower")
    return None if found is None else CompiledBackend(found)

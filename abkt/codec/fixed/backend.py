"""What every path through the quantiser offers: the oracle, the compiled one and the Triton kernels are interchangeable."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from abkt.codec.cells import Cells

EXACT = 255
"""The form of a cell that travelled exact, so there is nothing to expand."""


@dataclass(frozen=True, slots=True)
class CodedCells:
    """Cells, quantised. body: uint8 on the CPU, every pass in its slot (cells.py). errors: [passes + 1, cells] float64, the squared error
    left after each pass. forms: [cells] uint8, the class of each cell's variance (quantize.py), or EXACT for cells that must travel as
    they are (their slots are 0, their errors too). deviation: [layers, kinds, heads] float64, squared deviation of the coded values from
    their channel means over the coded tokens."""

    body: torch.Tensor
    errors: np.ndarray
    forms: np.ndarray
    deviation: np.ndarray


@dataclass(frozen=True, slots=True)
class Arrived:
    """A prefix of a stream. wire: its bytes, uint8. offsets: [passes + 1, cells] int64, where each slot is in it. present: [cells] int8,
    how many passes of each cell are there beyond its metadata. forms: [cells] uint8, as in Coded. centres: [layers, heads, channels]
    float32, of V."""

    wire: np.ndarray
    offsets: np.ndarray
    present: np.ndarray
    forms: np.ndarray
    centres: np.ndarray


class Backend(Protocol):
    def describe(self) -> str: ...

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells, centres: np.ndarray) -> CodedCells:
        """Quantise what lies between the edges. data: a pool's tensor; blocks: the coded part of a table; centres: as in Arrived."""
        ...

    def expand(self, arrived: Arrived, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        """Write what arrived into a pool's tensor, at the blocks of the coded part of a table."""
        ...

    def checksums(self, buffer: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """CRC-32 of slots of a uint8 buffer: uint32, in the shape of offsets."""
        ...


def checksums(buffer: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    view = buffer.data
    sums = [zlib.crc32(view[o : o + n]) for o, n in zip(offsets.ravel().tolist(), sizes.ravel().tolist(), strict=True)]
    return np.array(sums, dtype=np.uint32).reshape(offsets.shape)

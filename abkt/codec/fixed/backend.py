"""What every implementation of the fixed coder's kernels offers. The oracle, the compiled code and the Triton kernels are
interchangeable."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.coder import CodedCells


@dataclass(frozen=True, slots=True)
class Arrived:
    """A prefix of a stream, as a backend expands it. centres: [layers, heads, channels] float32, the centres of V's channels. The other
    fields are as in StreamPrefix."""

    wire: np.ndarray
    offsets: np.ndarray
    present: np.ndarray
    classes: np.ndarray
    centres: np.ndarray


class Backend(Protocol):
    def describe(self) -> str:
        """The name and the kind of this backend, as text for messages and reports."""
        ...

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells, centres: np.ndarray) -> CodedCells:
        """Quantise what lies between the edges. data: a pool's tensor; blocks: the coded part of a table; centres: as in Arrived."""
        ...

    def expand(self, arrived: Arrived, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        """Write what arrived into a pool's tensor, into the blocks of the coded part of a table."""
        ...

    def checksums(self, buffer: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """CRC-32 of slots of a uint8 buffer: uint32, in the shape of offsets."""
        ...


def checksums(buffer: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    view = buffer.data
    sums = [zlib.crc32(view[o : o + n]) for o, n in zip(offsets.ravel().tolist(), sizes.ravel().tolist(), strict=True)]
    return np.array(sums, dtype=np.uint32).reshape(offsets.shape)

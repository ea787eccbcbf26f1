"""A coder turns the cells of a sequence into passes of bytes, and the first passes of each cell, however many, back into values.

There are three, the fixed coder (fixed/coder.py), the entropy coder (entropy/coder.py) and the klt coder (klt/coder.py). `Codec` makes one
of each, and a stream's header names the coder that wrote it. Everything else about a stream (order, bands, cuts, checksums) is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.policy.view import CoderName

CODERS: tuple[CoderName, ...] = ("fixed", "entropy", "klt")  # by their number on the wire

VERBATIM = 255
"""The class of a cell that is not coded. Its values travel at full precision, in the head of the stream."""

OMITTED = 254
"""The class of a cell that does not travel, because no later token sees its KV: it lies before the window of its layer."""


@dataclass(frozen=True, slots=True)
class CodedCells:
    """Coded cells.

    body: uint8 on the CPU, every slot (cells.py). errors: [passes + 1, cells] float64, the squared error left after each pass. classes:
    [cells] uint8, the class of each cell's variance (fixed/quantize.py; 0 with the entropy coder), or VERBATIM for a cell that could not be
    coded; its slots and errors are 0. deviation: [layers, kinds, heads] float64, squared deviation of the coded values from their channel
    means over the coded tokens.
    """

    body: torch.Tensor
    errors: np.ndarray
    classes: np.ndarray
    deviation: np.ndarray

    @property
    def verbatim(self) -> np.ndarray:
        """The numbers of the verbatim cells, in rising order."""
        return np.flatnonzero(self.classes == VERBATIM)

    def without(self, omitted: np.ndarray, body: torch.Tensor, deviation: np.ndarray) -> CodedCells:
        """The same, but some cells do not travel. omitted: [cells] bool; body, deviation: those without them."""
        return CodedCells(body, np.where(omitted, 0.0, self.errors), np.where(omitted, np.uint8(OMITTED), self.classes), deviation)


@dataclass(frozen=True, slots=True)
class CodedSequence:
    """What a coder returns for a sequence.

    sizes: [passes + 1, cells] int64, bytes of each slot; row 0 is the metadata. levels: [strips] uint8, levels of differences of each strip
    (entropy/haar.py); empty with the fixed coder. statistics: what the head of the stream says about all cells.
    """

    cells: CodedCells
    sizes: np.ndarray
    levels: np.ndarray
    statistics: bytes


@dataclass(frozen=True, slots=True)
class StreamPrefix:
    """A prefix of a stream, as a coder expands it.

    wire: the bytes, uint8. offsets, sizes: [passes + 1, cells] int64, the place of each slot in them, and its size in bytes. present:
    [cells] int8, how many passes of each cell have arrived, without the metadata. classes, levels, statistics: as in CodedCells and
    CodedSequence.
    """

    wire: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    present: np.ndarray
    classes: np.ndarray
    levels: np.ndarray
    statistics: bytes


class Coder(Protocol):
    """The interface of a coder. data: a pool's tensor. blocks: the coded part of a block table (`Cells.coded_table`).

    The static methods are about a coder's part of the stream header, its *tables*. They can be called without a coder.
    """

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells) -> CodedSequence:
        """Code what lies between the edges of a sequence."""
        ...

    def expand(self, prefix: StreamPrefix, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        """Write what arrived into a pool's tensor. Raises ValueError, and writes nothing, if the bytes are found not to be those of an
        encoder."""
        ...

    @staticmethod
    def statistics_bytes(cells: Cells, levels: np.ndarray) -> int:
        """Bytes of the statistics in the head of a stream."""
        ...

    @staticmethod
    def tables_bytes(cells: Cells) -> int:
        """Bytes of the tables in the header."""
        ...

    @staticmethod
    def pack_tables(cells: Cells, sizes: np.ndarray, levels: np.ndarray) -> bytes: ...

    @staticmethod
    def read_tables(data: memoryview, cells: Cells, verbatim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """sizes and levels from the bytes of `pack_tables`. verbatim: [cells] bool. Raises ValueError for values that no encoder wrote."""
        ...

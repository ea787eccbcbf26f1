"""The fixed coder: the nested quantiser of quantize.py, its bits packed into slots of fixed sizes, without entropy coding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.coder import CodedSequence, StreamPrefix
from abkt.codec.fixed.backend import Arrived, Backend
from abkt.codec.fixed.centre import value_centres

NO_LEVELS = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class FixedCoder:
    """backend_on: returns the backend for pools on a device. The statistics of a stream are the centres of V's channels (centre.py), in the
    pool's dtype. There are no tables, since the sizes of all slots follow from the shape of the cells."""

    backend_on: Callable[[torch.device], Backend]

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells) -> CodedSequence:
        centres = value_centres(data, blocks, cells)
        coded = self.backend_on(data.device).encode(data, blocks, cells, centres)
        statistics = torch.from_numpy(centres.reshape(-1)).to(data.dtype).view(torch.uint8).numpy().tobytes() if cells.count else b""
        return CodedSequence(coded, cells.sizes, NO_LEVELS, statistics)

    def expand(self, prefix: StreamPrefix, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        layers, kinds, heads, _ = cells.shape
        centres = np.zeros((0, heads, cells.dim), dtype=np.float32)
        if kinds > 1:
            carried = torch.frombuffer(bytearray(prefix.statistics), dtype=data.dtype, count=layers * heads * cells.dim)
            centres = carried.view(layers, heads, cells.dim).float().numpy()
        arrived = Arrived(prefix.wire, prefix.offsets, prefix.present, prefix.classes, centres)
        self.backend_on(data.device).expand(arrived, data, blocks, cells)

    @staticmethod
    def statistics_bytes(cells: Cells, levels: np.ndarray) -> int:
        return cells.layout.model.kv_bytes_per_token // 2 if cells.count and cells.shape[1] > 1 else 0  # a vector the size of a token's V

    @staticmethod
    def tables_bytes(cells: Cells) -> int:
        return 0

    @staticmethod
    def pack_tables(cells: Cells, sizes: np.ndarray, levels: np.ndarray) -> bytes:
        return b""

    @staticmethod
    def read_tables(data: memoryview, cells: Cells, verbatim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return cells.sizes, NO_LEVELS

"""The Triton kernels as a backend: inputs go to the device, one launch for each kind codes them, and the results come back.

enqueue.py, which this uses, is for pipelines that must not wait. Checksums are computed on the host, where slots are sent.
"""

from __future__ import annotations

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.coder import CodedCells
from abkt.codec.fixed import backend, compiled
from abkt.codec.fixed.backend import Arrived
from abkt.codec.fixed.enqueue import Encoding, Expansion


class TritonBackend:
    def describe(self) -> str:
        return "triton"

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells, centres: np.ndarray) -> CodedCells:
        work = Encoding(cells, data.device)
        work.table.copy_(torch.tensor(blocks, dtype=torch.int64))
        work.centres.copy_(torch.from_numpy(centres))
        work.enqueue(data, with_centres=False)
        work.copy_report()
        body = work.body.cpu()  # enqueued after the report on the same CUDA stream, so both have arrived
        return CodedCells(body, work.host.errors.double().numpy(), work.host.classes.numpy(), work.host.deviation.numpy())

    def expand(self, arrived: Arrived, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        work = Expansion(cells, data.device)
        work.table.copy_(torch.tensor(blocks, dtype=torch.int64))
        for to, given in (
            (work.centres, arrived.centres),
            (work.offsets, arrived.offsets),
            (work.present, arrived.present),
            (work.classes, arrived.classes),
        ):
            to.copy_(torch.tensor(given))
        work.enqueue(torch.tensor(arrived.wire).to(data.device), data)

    def checksums(self, buffer: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        fast = compiled.load()
        return fast.checksums(buffer, offsets, sizes) if fast else backend.checksums(buffer, offsets, sizes)

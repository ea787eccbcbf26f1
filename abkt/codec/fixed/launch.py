"""The Triton kernels as a backend: inputs go to the device, a launch for each kind codes them, and the results come back.

enqueue.py, which this uses, is for pipelines that must not wait. Here the host waits once a call, for the copy of what was coded into
pinned memory. Large buffers on the device are kept (arena.py), and torch keeps pinned memory that a stream no longer needs. Checksums are
computed on the host, where slots are sent.
"""

from __future__ import annotations

from threading import Lock

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.coder import CodedCells
from abkt.codec.fixed import backend, compiled
from abkt.codec.fixed.arena import Arena
from abkt.codec.fixed.backend import Arrived
from abkt.codec.fixed.enqueue import Encoding, Expansion

MOST_CHANNELS = 256  # sums of the codes of a token of V fit 16 bits


class TritonBackend:
    """Raises ValueError for heads whose channels do not come in fours."""

    def __init__(self) -> None:
        self._arenas: dict[torch.device, Arena] = {}
        self._one_at_a_time = Lock()  # calls share the arena

    def describe(self) -> str:
        return "triton"

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells, centres: np.ndarray) -> CodedCells:
        _check(cells)
        with self._one_at_a_time:
            return self._encode(data, blocks, cells, centres)

    def _encode(self, data: torch.Tensor, blocks: list[int], cells: Cells, centres: np.ndarray) -> CodedCells:
        work = Encoding(cells, data.device, self._arena(data.device))
        _stage(work.table, np.array(blocks, dtype=np.int32))
        _stage(work.centres, centres)
        work.enqueue(data, with_centres=False)
        work.copy_report()
        body = torch.empty(cells.body_bytes, dtype=torch.uint8, pin_memory=data.is_cuda)
        body.copy_(work.body, non_blocking=True)
        _wait(data.device)
        return CodedCells(body, work.host.errors.double().numpy(), work.host.classes.numpy(), work.host.deviation.numpy())

    def expand(self, arrived: Arrived, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        _check(cells)
        with self._one_at_a_time:
            self._expand(arrived, data, blocks, cells)

    def _expand(self, arrived: Arrived, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        work, wire = Expansion(cells, data.device), self._arena(data.device).take("wire", arrived.wire.shape, torch.uint8)
        for to, given in (
            (wire, arrived.wire),
            (work.table, np.array(blocks, dtype=np.int32)),
            (work.centres, arrived.centres),
            (work.offsets, arrived.offsets),
            (work.present, arrived.present),
            (work.classes, arrived.classes),
        ):
            _stage(to, given)
        work.enqueue(wire, data)
        _wait(data.device)  # the arena's wire may be overwritten by the next call, and a caller may read the pool

    def checksums(self, buffer: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        fast = compiled.load()
        return fast.checksums(buffer, offsets, sizes) if fast else backend.checksums(buffer, offsets, sizes)

    def _arena(self, device: torch.device) -> Arena:
        return self._arenas.setdefault(device, Arena(device))


def _check(cells: Cells) -> None:
    if cells.dim % 4 or cells.dim > MOST_CHANNELS:
        most = f"a multiple of 4, at most {MOST_CHANNELS}"
        raise ValueError(f"the Triton kernels code heads, or equal parts of them, of {most} channels, not {cells.dim}: take backend=oracle")


def _stage(to: torch.Tensor, given: np.ndarray) -> None:
    """Copy an array into a tensor, through pinned memory if that is on a GPU, without waiting."""
    staged = torch.empty(given.shape, dtype=torch.from_numpy(given[:0].copy()).dtype, pin_memory=to.is_cuda)
    staged.numpy()[...] = given
    to.copy_(staged.view(to.shape), non_blocking=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()

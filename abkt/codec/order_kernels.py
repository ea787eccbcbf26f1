"""order.py on the GPU: the slope of every pass, bands of about equal bytes, and the curve. Nothing waits for the GPU.

Slopes are counted into bins of a float32's exponent and 8 bits of mantissa, steepest first; a running sum over the bins says where each
band begins. Arithmetic is float64, in the same sequence as in order.py, so both give the same bands if the errors are the same. The host
reads the curve, at most 65 points, and one byte per pass.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from abkt.codec.cells import Cells
from abkt.codec.coder import VERBATIM
from abkt.codec.fixed.enqueue import Report
from abkt.codec.order import KEYS, MAX_BANDS, NEVER

CELLS = 128  # of one program

_KEYS = tl.constexpr(KEYS)
_BANDS = tl.constexpr(MAX_BANDS)
_NEVER = tl.constexpr(NEVER)
_VERBATIM = tl.constexpr(VERBATIM)


@triton.jit
def count_slopes(
    errors, sizes, shares, weights, classes, keys, bytes_of_bin, cells, cells_of_share, PASSES: tl.constexpr, CELLS: tl.constexpr
):
    """Finds the bin of every pass of CELLS cells, or KEYS where the pass removes nothing, and adds the bytes of the pass to its bin.
    shares: float64, how much a unit of squared error of each (layer, kind) adds to the distortion; weights: float64, one per cell."""
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    held = cell < cells
    coded = tl.load(classes + cell, mask=held, other=_VERBATIM) != _VERBATIM
    factor = tl.load(shares + cell // cells_of_share, mask=held, other=0.0) * tl.load(weights + cell, mask=held, other=0.0)
    for p in tl.static_range(1, PASSES + 1):
        slope = tl.full((CELLS,), float("inf"), dtype=tl.float64)
        for start in tl.static_range(0, p):
            steepest = tl.full((CELLS,), float("-inf"), dtype=tl.float64)
            before = tl.load(errors + start * cells + cell, mask=held, other=0.0).to(tl.float64) * factor
            spent = tl.zeros((CELLS,), dtype=tl.int64)
            for end in tl.static_range(start + 1, PASSES + 1):
                spent += tl.load(sizes + end * cells + cell, mask=held, other=1)
                if end >= p:
                    after = tl.load(errors + end * cells + cell, mask=held, other=0.0).to(tl.float64) * factor
                    steepest = tl.maximum(steepest, (before - after) / tl.maximum(spent, 1).to(tl.float64))
            slope = tl.minimum(slope, steepest)
        narrow = slope.to(tl.float32)
        useful = held & coded & (narrow > 0)
        key = _KEYS - 1 - (narrow.to(tl.int32, bitcast=True) >> 15)  # steepest first
        size = tl.load(sizes + p * cells + cell, mask=held, other=0)
        tl.atomic_add(bytes_of_bin + key, size, mask=useful)
        tl.store(keys + (p - 1) * cells + cell, tl.where(useful, key, _KEYS), mask=held)


@triton.jit
def begin_bands(bytes_of_bin, ends, begins, SIZE: tl.constexpr):
    """Stores 1 where a band begins at a bin, else 0. ends: running sums of bytes_of_bin."""
    key = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    size, end = tl.load(bytes_of_bin + key), tl.load(ends + key)
    total = tl.maximum(tl.load(ends + _KEYS - 1), 1)
    placed = (end * _BANDS + total - 1) // total
    before = ((end - size) * _BANDS + total - 1) // total
    tl.store(begins + key, ((size > 0) & (placed != before)).to(tl.int32))


@triton.jit
def fill_bands(
    keys, numbers, errors, sizes, shares, weights, bands, bytes_of_band, removed, cells, cells_of_share,
    PASSES: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Stores the band of every pass, and adds up the bytes and the removed distortion of each band. numbers: running sums of `begins`."""
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    held = cell < cells
    factor = tl.load(shares + cell // cells_of_share, mask=held, other=0.0) * tl.load(weights + cell, mask=held, other=0.0)
    for p in tl.static_range(1, PASSES + 1):
        key = tl.load(keys + (p - 1) * cells + cell, mask=held, other=_KEYS)
        sent = key < _KEYS
        band = tl.load(numbers + key, mask=sent, other=1).to(tl.int32) - 1
        before = tl.load(errors + (p - 1) * cells + cell, mask=held, other=0.0).to(tl.float64) * factor
        after = tl.load(errors + p * cells + cell, mask=held, other=0.0).to(tl.float64) * factor
        size = tl.load(sizes + p * cells + cell, mask=held, other=0)
        tl.atomic_add(bytes_of_band + band, size, mask=sent)
        tl.atomic_add(removed + band, before - after, mask=sent)
        tl.store(bands + (p - 1) * cells + cell, tl.where(sent, band, _NEVER).to(tl.uint8), mask=held)


class Ordering:
    """Orders the passes of one Encoding; its buffers may be used again and again. weights: float64 [cells], of mean 1 over the values.

    bands: [passes, cells] uint8, as order.Bands.of. bytes_of_band: [64] int64. removed: [64] float64, the distortion that each band
    removes.
    """

    def __init__(self, cells: Cells, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.cells = cells
        self.weights = torch.ones(cells.count, dtype=torch.float64, device=device)
        self.bands = zeros(cells.passes, cells.count, dtype=torch.uint8)
        self.bytes_of_band, self.removed = zeros(MAX_BANDS, dtype=torch.int64), zeros(MAX_BANDS, dtype=torch.float64)
        self._sizes = torch.from_numpy(np.ascontiguousarray(cells.sizes)).to(device)
        self._keys = zeros(cells.passes, cells.count, dtype=torch.int32)
        self._bins, self._begins = zeros(KEYS, dtype=torch.int64), zeros(KEYS, dtype=torch.int32)

    def enqueue(self, report: Report) -> None:
        """Order the passes that `report` describes; it lies on the device."""
        layers, kinds, heads, tiles = self.cells.shape
        count, passes = self.cells.count, self.cells.passes
        for part in (self._bins, self.bytes_of_band, self.removed):
            part.zero_()
        scale, alone = report.deviation.sum(2), report.errors[0].double().view(self.cells.shape).sum((2, 3))
        scale = torch.where(scale > 0, scale, alone)
        shares = 1 / (torch.where(scale > 0, scale, 1.0) * layers * kinds)
        grid, options = (triton.cdiv(count, CELLS),), {"PASSES": passes, "CELLS": CELLS}
        given = (self._sizes, shares, self.weights)
        count_slopes[grid](report.errors, *given, report.classes, self._keys, self._bins, count, heads * tiles, **options)
        begin_bands[(KEYS // 1024,)](self._bins, self._bins.cumsum(0), self._begins, SIZE=1024)
        numbers = self._begins.cumsum(0)
        found = (self.bands, self.bytes_of_band, self.removed)
        fill_bands[grid](self._keys, numbers, report.errors, *given, *found, count, heads * tiles, **options)

"""The lossless code on one core: compiled.cpp, built once with g++ for this machine. Its bytes equal those of oracle.py."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

from abkt.codec.compile import library_or_none
from abkt.codec.lossless.oracle import LosslessUnits, UnitLayout, Windows, check_sizes

SOURCE = Path(__file__).with_name("compiled.cpp")
DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float8_e4m3fn: 2, torch.float32: 3}


class CompiledLossless:
    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.abkt_lossless_encode.restype = library.abkt_lossless_decode.restype = ctypes.c_int64

    def histograms(self, data: torch.Tensor, starts: torch.Tensor, n: int, groups: int) -> torch.Tensor:
        """How often each exponent occurs in each group of the units of n values of `data` at `starts`: int64 [groups, 256]."""
        counts = torch.zeros(groups, 256, dtype=torch.int64)
        numbers = (DTYPES[data.dtype], n, len(starts))
        self.library.abkt_lossless_histograms(*map(_int, numbers), _at(data), _at(starts), _int(groups), _at(counts))
        return counts

    def encode(self, data: torch.Tensor, starts: torch.Tensor, n: int, windows: Windows, body: torch.Tensor | None = None) -> LosslessUnits:
        """Code units of n values of `data` (CPU, contiguous) at `starts` (int64, in values). The caller has checked that they are inside.

        body: uint8 of len(starts) * raw_bytes, a buffer to write to instead of a new one.
        """
        layout, units = UnitLayout(data.dtype, n, windows.width), len(starts)
        if body is None:
            body = torch.empty(units * layout.raw_bytes, dtype=torch.uint8)
        sizes = torch.full((units,), layout.raw_bytes, dtype=torch.int64)
        if layout.fixed_bytes == layout.raw_bytes:
            self._copy(body, None, data, starts, layout.raw_bytes)
            return LosslessUnits(layout, windows, sizes, body[: units * layout.raw_bytes])
        shape = torch.tensor([n, layout.fixed_bytes, layout.raw_bytes])
        numbers = (_int(DTYPES[data.dtype]), _int(layout.width))
        total = self.library.abkt_lossless_encode(
            *numbers, _at(shape), _int(units), _at(data), _at(starts), _int(len(windows.bases)), _at(windows.bases), _at(sizes), _at(body)
        )
        assert total >= 0
        return LosslessUnits(layout, windows, sizes, body[:total])

    def decode(self, units: LosslessUnits, data: torch.Tensor, starts: torch.Tensor) -> None:
        """Write units into `data` (CPU, contiguous) at `starts`. Raises ValueError, naming the first unit whose sizes and codes do not fit
        each other; the content of `data` is undefined then."""
        check_sizes(units)
        layout = units.layout
        if layout.fixed_bytes == layout.raw_bytes:
            self._copy(data, starts, units.body, None, layout.raw_bytes)
            return
        shape = torch.tensor([layout.n, layout.fixed_bytes, layout.raw_bytes])
        numbers, bases = (_int(DTYPES[layout.dtype]), _int(layout.width)), units.windows.bases
        table = (_int(len(bases)), _at(bases), _at(units.sizes.contiguous()), _at(units.body))
        wrong = self.library.abkt_lossless_decode(*numbers, _at(shape), _int(len(starts)), _at(data), _at(starts), *table)
        assert wrong >= -1
        if wrong >= 0:
            tail = int(units.sizes[wrong]) - layout.fixed_bytes
            raise ValueError(f"unit {wrong} is damaged: its codes and its tail of {tail} bytes differ in their number of escapes")

    def checksums(self, units: LosslessUnits) -> torch.Tensor:
        """CRC-32 of each unit, fixed part and then tail: int64 [units]."""
        sums = torch.empty(len(units.sizes), dtype=torch.int32)
        numbers = (_int(len(units.sizes)), _int(units.layout.fixed_bytes))
        self.library.abkt_lossless_checksums(*numbers, _at(units.sizes.contiguous()), _at(units.body), _at(sums))
        return sums.to(torch.int64) & 0xFFFFFFFF

    @staticmethod
    def _copy(to: torch.Tensor, to_starts: torch.Tensor | None, of: torch.Tensor, of_starts: torch.Tensor | None, size: int) -> None:
        """Copy units that are stored uncoded between a body and places in a pool."""
        starts = of_starts if to_starts is None else to_starts
        assert starts is not None
        for u, start in enumerate(starts.tolist()):
            a = to.data_ptr() + (u * size if to_starts is None else start * to.element_size())
            b = of.data_ptr() + (u * size if of_starts is None else start * of.element_size())
            ctypes.memmove(a, b, size)


def _int(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def _at(tensor: torch.Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    return ctypes.c_void_p(tensor.data_ptr())


@cache
def load() -> CompiledLossless | None:
    """The compiled backend; or None, with one warning in the log that gives the reason, if g++ is missing or cannot build it."""
    found = library_or_none(SOURCE, "the torch oracle runs in its place, much slower")
    return None if found is None else CompiledLossless(found)

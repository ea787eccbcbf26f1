"""Launches of the Triton kernels of the lossless code. They never wait for the GPU, so a CUDA graph can hold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from abkt.codec.lossless import wire as lossless_wire
from abkt.codec.lossless.kernels import count_exponents, decode_units, encode_units, gather_tails
from abkt.codec.lossless.oracle import MANTISSA, LosslessUnits, UnitLayout, Windows, bases_for, check_sizes

SAMPLE = 2048  # values of each unit that its group's histogram counts
DTYPES = (torch.bfloat16, torch.float16)


def constants(layout: UnitLayout) -> dict[str, int]:
    """Compile-time arguments and launch options of encode_units and decode_units. A thread has 128 values."""
    rows = triton.next_power_of_2(sum(-(-lanes // 8) for _, _, lanes in layout.tiles) if len(layout.tiles) == 1 else len(layout.tiles) * 32)
    return {
        "N": layout.n, "ROWS": rows, "MANTISSA": MANTISSA[layout.dtype], "WIDTH": layout.width, "FIXED": layout.fixed_bytes,
        "num_warps": min(16, max(1, rows // 32)),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class UnitBuffers:
    """Buffers for `encode_into`, allocated once. body: uint8, for the worst case. sizes: int64 [units], bytes of each unit. ends: int64
    [units], running sums of the bytes of tails, so the body ends at units * fixed_bytes + ends[-1]. slots: uint8, scratch memory."""

    layout: UnitLayout
    windows: Windows
    body: torch.Tensor
    sizes: torch.Tensor
    ends: torch.Tensor
    slots: torch.Tensor

    @classmethod
    def of(cls, layout: UnitLayout, windows: Windows, units: int) -> UnitBuffers:
        device = windows.bases.device
        body = torch.empty(units * layout.raw_bytes, dtype=torch.uint8, device=device)
        sizes, ends = (torch.empty(units, dtype=torch.int64, device=device) for _ in range(2))
        return cls(layout, windows, body, sizes, ends, torch.empty_like(body[: units * (layout.raw_bytes - layout.fixed_bytes)]))

    def units(self) -> LosslessUnits:
        """The coded units. Waits for the GPU, to know where the body ends."""
        total = int(self.ends[-1]) if len(self.ends) else 0
        return LosslessUnits(self.layout, self.windows, self.sizes, self.body[: len(self.sizes) * self.layout.fixed_bytes + total])


class TritonLossless:
    """As CompiledLossless, on the device of the data, for dtypes of 16 bits and codes of 2 to 4 bits."""

    def histograms(self, data: torch.Tensor, starts: torch.Tensor, n: int, groups: int) -> torch.Tensor:
        """How often each exponent occurs in each group, among the first SAMPLE values of each unit: int64 [groups, 256]."""
        counts = torch.zeros(groups, 256, dtype=torch.int32, device=data.device)
        size = triton.next_power_of_2(min(n, SAMPLE))
        lanes = data.view(torch.int16)
        count_exponents[(len(starts),)](lanes, starts, counts, groups, MANTISSA=MANTISSA[data.dtype], N=min(n, SAMPLE), SIZE=size)
        return counts.to(torch.int64)

    def windows(self, data: torch.Tensor, starts: torch.Tensor, n: int, groups: int, width: int = 3) -> Windows:
        """The best windows of this width for these units. The width is given, since the host would have to wait for the GPU to choose
        it."""
        return Windows(width, bases_for(self.histograms(data, starts, n, groups), width)[0])

    def encode_into(self, buffers: UnitBuffers, data: torch.Tensor, starts: torch.Tensor) -> None:
        """Code the units of `data` (contiguous, dtype of 16 bits) at `starts` (int64, multiples of 16). Nothing waits for the GPU."""
        layout, windows = _checked(buffers.layout), buffers.windows
        spare = layout.raw_bytes - layout.fixed_bytes
        words = data.view(torch.int16).view(-1).view(torch.int32)
        body, slots = buffers.body.view(torch.int32), buffers.slots.view(torch.int32)
        units = len(starts)
        encode_units[(units,)](words, starts, windows.bases, body, slots, buffers.sizes, len(windows.bases), **constants(layout))
        torch.cumsum(buffers.sizes - layout.fixed_bytes, 0, out=buffers.ends)
        tails = body[units * layout.fixed_bytes // 4 :]
        gather_tails[(units,)](slots, buffers.sizes, buffers.ends, tails, FIXED=layout.fixed_bytes, SPARE=spare, ROWS=128, num_warps=4)

    def encode(self, data: torch.Tensor, starts: torch.Tensor, n: int, windows: Windows) -> LosslessUnits:
        buffers = UnitBuffers.of(UnitLayout(data.dtype, n, windows.width), windows, len(starts))
        if len(starts):
            self.encode_into(buffers, data, starts)
        return buffers.units()

    def decode_into(self, units: LosslessUnits, data: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Write units into `data` at `starts`. Returns uint8 [units], 1 where a unit is damaged. Nothing waits for the GPU. The caller
        must check the sizes (check_sizes does, and waits)."""
        layout, windows = _checked(units.layout), units.windows
        count = len(units.sizes)
        damaged = torch.empty(count, dtype=torch.uint8, device=data.device)
        ends = (units.sizes - layout.fixed_bytes).cumsum(0)
        body = units.body.view(torch.int32)
        tails = body[count * layout.fixed_bytes // 4 :]
        words = data.view(torch.int16).view(-1).view(torch.int32)
        arguments = (body, units.sizes, ends, tails, windows.bases, words, starts, damaged, len(windows.bases))
        decode_units[(count,)](*arguments, **constants(layout))
        return damaged

    def decode(self, units: LosslessUnits, data: torch.Tensor, starts: torch.Tensor) -> None:
        check_sizes(units)
        if len(units.sizes):
            damaged = self.decode_into(units, data, starts).nonzero()
            if len(damaged):
                raise ValueError(f"unit {int(damaged[0])} is damaged: its codes and its tail differ in their number of escapes")

    def checksums(self, units: LosslessUnits) -> torch.Tensor:
        return lossless_wire.checksums(units)


def _checked(layout: UnitLayout) -> UnitLayout:
    if layout.dtype not in DTYPES or layout.fixed_bytes == layout.raw_bytes:
        raise ValueError(
            f"no kernel for codes of {layout.width} bits in units of {layout.n} values of {layout.dtype}; take the compiled backend"
        )
    return layout

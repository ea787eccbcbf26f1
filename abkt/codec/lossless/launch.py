"""The Triton kernels of the exact code: launches that never wait for the GPU, so a CUDA graph can hold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from abkt.codec.lossless import wire as lossless_wire
from abkt.codec.lossless.kernels import count_exponents, decode_units, encode_units, gather_tails
from abkt.codec.lossless.oracle import MANTISSA, ExactUnits, Form, Windows, bases_for, check_sizes

SAMPLE = 2048  # values that each unit gives to its group's histogram
DTYPES = (torch.bfloat16, torch.float16)


def constants(form: Form) -> dict[str, int]:
    """Compile-time arguments of encode_units and decode_units, and their launch: a thread has 128 values."""
    rows = triton.next_power_of_2(sum(-(-lanes // 8) for _, _, lanes in form.tiles) if len(form.tiles) == 1 else len(form.tiles) * 32)
    return {
        "N": form.n, "ROWS": rows, "MANTISSA": MANTISSA[form.dtype], "WIDTH": form.width, "FIXED": form.fixed_bytes,
        "num_warps": min(16, max(1, rows // 32)),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Room:
    """What `encode_into` writes, allocated once. body: uint8, worst case; sizes, ends: int64 [units], bytes of each unit, and running
    sums of those of tails, so that the body ends at units * fixed_bytes + ends[-1]; slots: uint8, of no further use."""

    form: Form
    windows: Windows
    body: torch.Tensor
    sizes: torch.Tensor
    ends: torch.Tensor
    slots: torch.Tensor

    @classmethod
    def of(cls, form: Form, windows: Windows, units: int) -> Room:
        device = windows.bases.device
        body = torch.empty(units * form.raw_bytes, dtype=torch.uint8, device=device)
        sizes, ends = (torch.empty(units, dtype=torch.int64, device=device) for _ in range(2))
        return cls(form, windows, body, sizes, ends, torch.empty_like(body[: units * (form.raw_bytes - form.fixed_bytes)]))

    def units(self) -> ExactUnits:
        """Waits for the GPU, to know where the body ends."""
        total = int(self.ends[-1]) if len(self.ends) else 0
        return ExactUnits(self.form, self.windows, self.sizes, self.body[: len(self.sizes) * self.form.fixed_bytes + total])


class TritonExact:
    """As exact_fast.CompiledExact, where the data are; dtypes of 16 bits, and codes of 2 to 4 (units as they are need no kernel)."""

    def histograms(self, data: torch.Tensor, starts: torch.Tensor, n: int, groups: int) -> torch.Tensor:
        """Of the first SAMPLE values of each unit: int64 [groups, 256]."""
        counts = torch.zeros(groups, 256, dtype=torch.int32, device=data.device)
        size = triton.next_power_of_2(min(n, SAMPLE))
        lanes = data.view(torch.int16)
        count_exponents[(len(starts),)](lanes, starts, counts, groups, MANTISSA=MANTISSA[data.dtype], N=min(n, SAMPLE), SIZE=size)
        return counts.to(torch.int64)

    def windows(self, data: torch.Tensor, starts: torch.Tensor, n: int, groups: int, width: int = 3) -> Windows:
        """The windows that suit these units; nothing waits. A fixed width, since the choice of one would have to be read back."""
        return Windows(width, bases_for(self.histograms(data, starts, n, groups), width)[0])

    def encode_into(self, room: Room, data: torch.Tensor, starts: torch.Tensor) -> None:
        """Code the units of `data` (contiguous, dtype of 16 bits) at `starts` (int64, multiples of 16). Nothing waits for the GPU."""
        form, windows = _checked(room.form), room.windows
        spare = form.raw_bytes - form.fixed_bytes
        words = data.view(torch.int16).view(-1).view(torch.int32)
        body, slots = room.body.view(torch.int32), room.slots.view(torch.int32)
        units = len(starts)
        encode_units[(units,)](words, starts, windows.bases, body, slots, room.sizes, len(windows.bases), **constants(form))
        torch.cumsum(room.sizes - form.fixed_bytes, 0, out=room.ends)
        tails = body[units * form.fixed_bytes // 4 :]
        gather_tails[(units,)](slots, room.sizes, room.ends, tails, FIXED=form.fixed_bytes, SPARE=spare, ROWS=128, num_warps=4)

    def encode(self, data: torch.Tensor, starts: torch.Tensor, n: int, windows: Windows) -> ExactUnits:
        room = Room.of(Form(data.dtype, n, windows.width), windows, len(starts))
        if len(starts):
            self.encode_into(room, data, starts)
        return room.units()

    def decode_into(self, units: ExactUnits, data: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Write units into `data` at `starts`. Returns uint8 [units], 1 where a unit is damaged; nothing waits for the GPU. The sizes are
        the caller's to check (check_sizes does, and waits)."""
        form, windows = _checked(units.form), units.windows
        count = len(units.sizes)
        damaged = torch.empty(count, dtype=torch.uint8, device=data.device)
        ends = (units.sizes - form.fixed_bytes).cumsum(0)
        body = units.body.view(torch.int32)
        tails = body[count * form.fixed_bytes // 4 :]
        words = data.view(torch.int16).view(-1).view(torch.int32)
        arguments = (body, units.sizes, ends, tails, windows.bases, words, starts, damaged, len(windows.bases))
        decode_units[(count,)](*arguments, **constants(form))
        return damaged

    def decode(self, units: ExactUnits, data: torch.Tensor, starts: torch.Tensor) -> None:
        check_sizes(units)
        if len(units.sizes):
            damaged = self.decode_into(units, data, starts).nonzero()
            if len(damaged):
                raise ValueError(f"unit {int(damaged[0])} is damaged: its codes have not as many escapes as its tail has room for")

    def checksums(self, units: ExactUnits) -> torch.Tensor:
        return lossless_wire.checksums(units)


def _checked(form: Form) -> Form:
    if form.dtype not in DTYPES or form.fixed_bytes == form.raw_bytes:
        raise ValueError(f"no kernel for codes of {form.width} bits in units of {form.n} values of {form.dtype}; take the compiled path")
    return form

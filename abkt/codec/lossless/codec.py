"""The lossless code for blocks: units of a pool to bytes, and back without a changed bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from abkt.codec.lossless import compiled as lossless_compiled
from abkt.codec.lossless import oracle as lossless
from abkt.codec.lossless import wire as lossless_wire
from abkt.codec.lossless.oracle import ALIGNMENT, MANTISSA, LosslessUnits, Windows

SAMPLED_VALUES = 65_536
"""How many values of each group a window is chosen from. The frequency of a code is then known to 0.2 %."""


class LosslessBackend(Protocol):
    """An implementation of the lossless code. Arguments as in oracle.py; units lie in `data` at `starts`."""

    def histograms(self, data: torch.Tensor, starts: torch.Tensor, n: int, groups: int) -> torch.Tensor: ...

    def encode(self, data: torch.Tensor, starts: torch.Tensor, n: int, windows: Windows) -> LosslessUnits: ...

    def decode(self, units: LosslessUnits, data: torch.Tensor, starts: torch.Tensor) -> None: ...

    def checksums(self, units: LosslessUnits) -> torch.Tensor: ...


class OracleLossless:
    """oracle.py, on units that are gathered first."""

    def histograms(self, data: torch.Tensor, starts: torch.Tensor, n: int, groups: int) -> torch.Tensor:
        return lossless.histograms(self._gathered(data, starts, n), groups)

    def encode(self, data: torch.Tensor, starts: torch.Tensor, n: int, windows: Windows) -> LosslessUnits:
        return lossless.encode(self._gathered(data, starts, n), windows)

    def decode(self, units: LosslessUnits, data: torch.Tensor, starts: torch.Tensor) -> None:
        values = lossless.decode(units)
        flat = data.view(lossless.INTEGER[data.dtype.itemsize]).view(-1)
        flat[self._places(starts, units.layout.n)] = values.view(flat.dtype)

    def checksums(self, units: LosslessUnits) -> torch.Tensor:
        return lossless_wire.checksums(units)

    @staticmethod
    def _places(starts: torch.Tensor, n: int) -> torch.Tensor:
        return starts[:, None] + torch.arange(n, device=starts.device)

    def _gathered(self, data: torch.Tensor, starts: torch.Tensor, n: int) -> torch.Tensor:
        flat = data.view(lossless.INTEGER[data.dtype.itemsize]).view(-1)
        return flat[self._places(starts, n)].view(data.dtype)


@dataclass(frozen=True, slots=True)
class LosslessCodec:
    """Codes units of KV without loss, on the CPU: n values each (a multiple of 16) of bfloat16, float16, float8_e4m3fn or float32.

    Parameters
    ----------
    backend : the implementation, compiled or oracle; both write the same bytes. `LosslessCodec.best()` takes the compiled one if it can be
        built.

    Source: fixed codes with escapes for exponents, SplitZip (arXiv 2605.01708); oracle.py describes the format.
    """

    backend: LosslessBackend

    @classmethod
    def best(cls) -> LosslessCodec:
        return cls(lossless_compiled.load() or OracleLossless())

    def windows(self, x: torch.Tensor, starts: torch.Tensor | None = None, n: int | None = None, groups: int = 1) -> Windows:
        """The best windows for these units, from a sample of about SAMPLED_VALUES values per group. Arguments as in `encode`."""
        data, starts, n = _placed(x, starts, n)
        if groups < 1 or (len(starts) and len(starts) % groups):
            raise ValueError(f"{len(starts)} units are not a multiple of {groups} groups")
        if not len(starts):
            return Windows(0, torch.zeros(groups, dtype=torch.uint8))
        rounds = len(starts) // groups
        taken = min(rounds, -(-SAMPLED_VALUES // n))
        chosen = (torch.arange(taken) * rounds // taken)[:, None] * groups + torch.arange(groups)
        return lossless.windows_of(self.backend.histograms(data, starts[chosen.flatten()], n, groups), x.dtype)

    def encode(
        self,
        x: torch.Tensor,
        starts: torch.Tensor | None = None,
        n: int | None = None,
        groups: int = 1,
        windows: Windows | None = None,
    ) -> LosslessUnits:
        """Code units of a tensor.

        Parameters
        ----------
        x : the units, [units, n]; or any contiguous tensor (a pool's), with `starts` and `n`.
        starts : int64 [units], where each unit begins in x, in values; multiples of 16.
        n : values of a unit.
        groups : unit u belongs to group u % groups, and each group has a window of its own (one for each layer and kind, for example).
        windows : known windows, from `windows` on earlier units; without them the best ones for these units are found.

        Returns
        -------
        The coded units.

        Raises
        ------
        ValueError : with the shapes, if the units do not lie in x, or cannot be coded.
        """
        data, starts, n = _placed(x, starts, n)
        return self.backend.encode(data, starts, n, windows or self.windows(x, starts, n, groups))

    def decode(self, units: LosslessUnits, out: torch.Tensor | None = None, starts: torch.Tensor | None = None) -> torch.Tensor:
        """The units as a new tensor [units, n]; or written into `out` (contiguous) at `starts`, and `out` is returned.

        Raises ValueError, naming the unit, if sizes and codes do not fit each other, which cannot happen after `unpack`. Then the content
        of `out` is undefined.
        """
        count, n, dtype = len(units.sizes), units.layout.n, units.layout.dtype
        if out is None:
            out = torch.empty(count, n, dtype=dtype)
        data, starts, _ = _placed(out, starts, n)
        if out.dtype != dtype or len(starts) != count:
            raise ValueError(f"{count} units of {dtype} do not fit {len(starts)} places in a tensor of {out.dtype}")
        self.backend.decode(units, data, starts)
        return out

    def pack(self, units: LosslessUnits) -> bytes:
        """The units as bytes: header, checksums and body (wire.py)."""
        return lossless_wire.pack_header(units, self.backend.checksums(units)) + units.body.numpy().tobytes()

    def unpack(self, data: bytes | bytearray | memoryview, units: int, n: int, dtype: torch.dtype) -> LosslessUnits:
        """The inverse of `pack`. Raises ValueError, naming the unit if possible, unless all bytes are present, undamaged and of this
        shape."""
        coded, listed = lossless_wire.read_header(memoryview(data).cast("B"), units, n, dtype)
        lossless_wire.refuse_damage(self.backend.checksums(coded), listed)
        return coded


def _placed(x: torch.Tensor, starts: torch.Tensor | None, n: int | None) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Data, starts and length of units. Raises ValueError if they do not fit each other."""
    if x.dtype not in MANTISSA:
        raise ValueError(f"no lossless code for {x.dtype}; take one of {', '.join(str(d) for d in MANTISSA)}")
    if not x.is_contiguous() or x.device.type != "cpu":
        raise ValueError(f"tensor {tuple(x.shape)} on {x.device}: the lossless code takes a contiguous one on the CPU")
    if starts is None:
        if x.dim() != 2:
            raise ValueError(f"units of shape {tuple(x.shape)}: the lossless code takes [units, n], or starts and n")
        starts, n = torch.arange(len(x)) * x.shape[1], x.shape[1]
    if n is None or n < ALIGNMENT or n % ALIGNMENT:
        raise ValueError(f"unit of {n} values: the lossless code takes a multiple of {ALIGNMENT}")
    if starts.dtype != torch.int64 or starts.dim() != 1:
        raise ValueError(f"starts {tuple(starts.shape)} of {starts.dtype}: they are int64 [units]")
    if len(starts) and (int(starts.min()) < 0 or int(starts.max()) + n > x.numel() or (starts % ALIGNMENT).any()):
        first, last = int(starts.min()), int(starts.max())
        raise ValueError(f"units of {n} values at {first} to {last} are not all, on multiples of {ALIGNMENT}, in {tuple(x.shape)}")
    return x, starts.contiguous(), n

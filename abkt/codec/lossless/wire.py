"""Coded units as self-describing bytes with checksums. Damage is reported with the number of the unit.

    header   fixed fields | base of each group, uint8 | bytes of each unit, uint32 | CRC-32 of each unit, uint32 | CRC-32 of the header
    body     as in LosslessUnits

Both are whole multiples of 16 bytes; padding is 0. Little-endian throughout.
"""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np
import torch

from abkt.codec.lossless.oracle import ALIGNMENT, LosslessUnits, UnitLayout, Windows, check_sizes

MAGIC = b"ABKX"
VERSION = 1
DTYPES = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float32)  # by their number on the wire
FIXED = struct.Struct("<4sHBBIIII")  # magic, version, dtype, width | header bytes, units, n, groups


def header_bytes(units: int, groups: int) -> int:
    return -(-(FIXED.size + groups + 8 * units + 4) // ALIGNMENT) * ALIGNMENT


def checksums(units: LosslessUnits) -> torch.Tensor:
    """CRC-32 of each unit, fixed part and then tail: int64 [units]."""
    body, fixed, tails = units.body.numpy().data, units.layout.fixed_bytes, units.tail_starts.tolist()
    firsts = (zlib.crc32(body[u * fixed : (u + 1) * fixed]) for u in range(len(units.sizes)))
    return torch.tensor([zlib.crc32(body[a:b], crc) for (a, b), crc in zip(pairwise(tails), firsts, strict=True)], dtype=torch.int64)


def pack_header(units: LosslessUnits, sums: torch.Tensor) -> bytes:
    layout, windows, count = units.layout, units.windows, len(units.sizes)
    size = header_bytes(count, len(windows.bases))
    fixed = FIXED.pack(MAGIC, VERSION, DTYPES.index(layout.dtype), layout.width, size, count, layout.n, len(windows.bases))
    listed = (units.sizes.numpy().astype("<u4"), sums.numpy().astype("<u4"))
    head = b"".join((fixed, windows.bases.numpy().tobytes(), *(part.tobytes() for part in listed))).ljust(size - 4, b"\0")
    return head + struct.pack("<I", zlib.crc32(head))


def read_header(data: memoryview, units: int, n: int, dtype: torch.dtype) -> tuple[LosslessUnits, torch.Tensor]:
    """The units in `data`, and their listed checksums, which are not checked yet. Raises ValueError, with the reason, unless the header is
    complete, undamaged, of this version and for `units` units of `n` values of `dtype`."""
    if len(data) < FIXED.size:
        raise ValueError(f"lossless units cut inside their header: {len(data)} bytes; the fixed fields alone are {FIXED.size}")
    magic, version, kind, width, size, count, length, groups = FIXED.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"not lossless units: they begin with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise ValueError(f"lossless units of version {version}; this codec reads version {VERSION}")
    if not FIXED.size < size <= len(data):
        raise ValueError(f"lossless units cut inside their header: {len(data)} bytes of {size}")
    if zlib.crc32(data[: size - 4]) != struct.unpack_from("<I", data, size - 4)[0]:
        raise ValueError("header of lossless units is damaged: its checksum does not match")
    theirs = (count, length, DTYPES[kind] if kind < len(DTYPES) else "an unknown dtype")
    if theirs != (units, n, dtype):
        raise ValueError(f"data holds {theirs[0]} units of {theirs[1]} values of {theirs[2]}; expected are {units} of {n} of {dtype}")
    if groups < 1 or header_bytes(count, groups) != size:
        raise ValueError(f"header of lossless units is {size} bytes; {groups} groups and {count} units need {header_bytes(count, groups)}")
    at = FIXED.size
    bases = torch.from_numpy(np.frombuffer(data, "u1", groups, at).copy())
    sizes, sums = (
        torch.from_numpy(np.frombuffer(data, "<u4", count, at + groups + 4 * count * part).astype(np.int64)) for part in range(2)
    )
    total = size + int(sizes.sum())
    if len(data) < total:
        raise ValueError(f"lossless units are cut: {len(data)} bytes of {total}")
    if len(data) > total:
        raise ValueError(f"{len(data) - total} bytes follow lossless units of {total} bytes")
    body = torch.from_numpy(np.frombuffer(data, "u1", total - size, size).copy())
    coded = LosslessUnits(UnitLayout(dtype, n, width), Windows(width, bases), sizes, body)
    check_sizes(coded)
    return coded, sums


def refuse_damage(found: torch.Tensor, listed: torch.Tensor) -> None:
    """Raises ValueError, naming the first damaged unit, if checksums [units] differ."""
    wrong = (found != listed).nonzero().flatten().tolist()
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"unit {wrong[0]}{more} is damaged: its checksum does not match")

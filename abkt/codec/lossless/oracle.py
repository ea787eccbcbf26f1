"""The lossless code, written to be read. It defines the bytes, and is the reference for the compiled code and the kernels.

A value is a sign, an exponent and a mantissa. Seven neighbouring exponents cover 95 to 97 % of the values of KV. So an exponent is sent as
its place in a *window* of 2**w - 1 neighbouring exponents, in w = 3 (or 2, or 4) bits. An exponent outside of the window is sent as the
escape code 2**w - 1, and as a byte in a list. Sign and mantissa are sent unchanged. The window of a group of units (a layer's K or V, for
example) begins at its *base*, so coding is a subtraction, and needs no table.

Source: fixed codes with escapes for exponents are SplitZip's (arXiv 2605.01708), which has 4 bits and the 15 most frequent exponents. In KV
these exponents are neighbours, so a window covers the same ones, and 3 bits are better than 4: 11.3 bits per value instead of 12.0.

A *unit* is n adjacent values (a multiple of 16): a whole block of a pool, or K or V of one layer of a block. It is divided into tiles of
4,096 values (the last may be shorter), and a tile into 16 *parts* of C = 8 * ceil(values / 128) adjacent values. A tile is stored as rows
of 16-bit lanes; lane i of every row holds bits of value i of the parts:

    bytes   8 rows, if the dtype has 8 mantissa and sign bits or more: the low byte of these bits of part p, and that of part p + 8 above it
    head    the other bits (mantissa and sign bits above the byte, then the code below them: h bits), as planes of its lowest 4, 2 and 1
            bits, as h requires. A plane of b bits has b rows, and part p is in row p % b, at bit p // b * b of the lane

A unit has a fixed part (for float32 first the low halves of all values, as they are; then the tiles, row after row) and a tail: the
escaped exponents, one byte each, of lane 0 (part 0 to part 15), of lane 1, and so on, tile after tile; it is padded with 0 to a multiple of
16 bytes. A unit that would not be shorter than its values is stored uncoded, so its size tells how it is stored. The fixed parts of all
units come first, then all tails. So only tails have to be moved together, everything is aligned to 16 bytes, and packing is elementwise
between rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TILE, PARTS = 4096, 16
ALIGNMENT = 16
WIDTHS = (2, 3, 4)
MANTISSA = {
    torch.bfloat16: 7,
    torch.float16: 10,
    torch.float8_e4m3fn: 3,
    torch.float32: 7,
}  # mantissa bits; for float32 those of its upper half, which is coded
INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def widths_of(dtype: torch.dtype) -> tuple[int, ...]:
    """Widths of codes that can be shorter than the exponent."""
    return tuple(w for w in WIDTHS if w < exponent_bits(dtype))


def exponent_bits(dtype: torch.dtype) -> int:
    return 8 * min(2, dtype.itemsize) - 1 - MANTISSA[dtype]


@dataclass(frozen=True, slots=True)
class UnitLayout:
    """The sizes of a coded unit: n values of a dtype, with codes of `width` bits (0: units are stored as they are). Raises ValueError for
    values that do not fit each other."""

    dtype: torch.dtype
    n: int
    width: int

    def __post_init__(self) -> None:
        if self.dtype not in MANTISSA:
            raise ValueError(f"no lossless code for {self.dtype}; take one of {', '.join(str(d) for d in MANTISSA)}")
        if self.n < ALIGNMENT or self.n % ALIGNMENT:
            raise ValueError(f"unit of {self.n} values: the lossless code takes a multiple of {ALIGNMENT}")
        if self.width not in (0, *widths_of(self.dtype)):
            raise ValueError(
                f"codes of {self.width} bits for {self.dtype}: take one of {widths_of(self.dtype)}, or 0 to send values as they are"
            )

    @property
    def byte_rows(self) -> int:
        return 8 if MANTISSA[self.dtype] >= 7 else 0

    @property
    def head_bits(self) -> int:
        return MANTISSA[self.dtype] + 1 - self.byte_rows + self.width

    @property
    def low_bytes(self) -> int:
        """Bytes before the tiles: the low halves of float32."""
        return 2 * self.n if self.dtype == torch.float32 else 0

    @property
    def raw_bytes(self) -> int:
        return self.n * self.dtype.itemsize

    @property
    def tiles(self) -> list[tuple[int, int, int]]:
        """First value, number of values and lanes C of each tile."""
        starts = range(0, self.n, TILE)
        return [(s, m, -(-m // 128) * 8) for s in starts for m in (min(TILE, self.n - s),)]

    @property
    def fixed_bytes(self) -> int:
        rows = self.byte_rows + self.head_bits
        coded = self.low_bytes + sum(2 * rows * lanes for _, _, lanes in self.tiles)
        return min(coded, self.raw_bytes) if self.width else self.raw_bytes

    @property
    def planes(self) -> tuple[tuple[int, int], ...]:
        """For each plane of the head: its bits, and the position of the lowest of them in the head."""
        bits = [b for b in (4, 2, 1) if self.head_bits & b]
        return tuple((b, sum(bits[:i])) for i, b in enumerate(bits))

    def tail_bytes(self, escapes: torch.Tensor) -> torch.Tensor:
        """Bytes of the tails of units with these numbers of escapes: at most those that a unit stored as it is needs beyond its fixed
        part."""
        spare = self.raw_bytes - self.fixed_bytes
        return ((escapes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT).clamp_max(spare)


@dataclass(frozen=True, slots=True)
class Windows:
    """width: bits of a code. bases: uint8 [groups], the first exponent of each group's window; unit u belongs to group u % groups."""

    width: int
    bases: torch.Tensor

    def __post_init__(self) -> None:
        if self.bases.dtype != torch.uint8 or self.bases.dim() != 1 or not len(self.bases):
            raise ValueError(f"bases {tuple(self.bases.shape)} of {self.bases.dtype}: they are uint8 [groups], one group at least")


@dataclass(frozen=True, slots=True)
class LosslessUnits:
    """Coded units. sizes: [units] int64, bytes of each. body: uint8, fixed parts [units, fixed_bytes] and then the tails, in order."""

    layout: UnitLayout
    windows: Windows
    sizes: torch.Tensor
    body: torch.Tensor

    @property
    def tail_starts(self) -> torch.Tensor:
        """Where each tail begins in the body, and where the last ends: [units + 1] int64."""
        tails = self.sizes - self.layout.fixed_bytes
        ends = tails.cumsum(0) + len(self.sizes) * self.layout.fixed_bytes
        return torch.cat((ends[:1] - tails[:1], ends)) if len(ends) else ends.new_zeros(1)


def lanes_of(x: torch.Tensor) -> torch.Tensor:
    """The coded bits of values as int32: all of them, or the upper half of float32."""
    bits = x.contiguous().view(INTEGER[x.dtype.itemsize]).to(torch.int32)
    return (bits >> 16 if x.dtype == torch.float32 else bits) & 0xFFFF


def split(bits: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the bits of `lanes_of` into the exponent, and the mantissa with the sign above it."""
    mantissa = MANTISSA[dtype]
    sign = 7 if dtype.itemsize == 1 else 15
    exponent = (bits >> mantissa) & ((1 << (sign - mantissa)) - 1)
    return exponent, (bits & ((1 << mantissa) - 1)) | (bits >> sign << mantissa)


def histograms(x: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """How often each exponent occurs in each group of units x [units, n]: int64 [groups, 256]."""
    exponent, _ = split(lanes_of(x), x.dtype)
    group = torch.arange(len(x), device=x.device) % groups
    index = (exponent.long() + group[:, None] * 256).reshape(-1)
    counts = torch.zeros(groups * 256, dtype=torch.int64, device=x.device)
    return counts.scatter_add_(0, index, torch.ones_like(index)).view(groups, 256)


def bases_for(counts: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The window that covers most of each histogram [groups, 256], the lowest of equally good ones: base uint8 [groups], and how many
    values it covers."""
    ends = torch.nn.functional.pad(counts.cumsum(1), (1, 0))
    reach = 2**width - 1
    best = (ends[:, reach:] - ends[:, :-reach]).max(1)
    return best.indices.to(torch.uint8), best.values


def windows_of(counts: torch.Tensor, dtype: torch.dtype, width: int | None = None) -> Windows:
    """The best windows for exponents of these frequencies [groups, 256], of the given width, or of the width that costs least."""
    total, choices = int(counts.sum()), {}
    for bits in widths_of(dtype) if width is None else (width,) if width else ():
        bases, covered = bases_for(counts, bits)
        choices[bits * total + 8 * (total - int(covered.sum()))] = Windows(bits, bases)
    if not choices or (width is None and min(choices) >= exponent_bits(dtype) * total):
        return Windows(0, torch.zeros(len(counts), dtype=torch.uint8, device=counts.device))
    return choices[min(choices)]


def windows_for(x: torch.Tensor, groups: int = 1, width: int | None = None) -> Windows:
    """The best windows for units x [units, n], or for a sample of units that keeps their order of groups."""
    return windows_of(histograms(x, groups), x.dtype, width)


def encode(x: torch.Tensor, windows: Windows) -> LosslessUnits:
    """Code units x [units, n] losslessly. Raises ValueError as UnitLayout does, and unless x has two dimensions."""
    if x.dim() != 2:
        raise ValueError(f"units of shape {tuple(x.shape)}: the lossless code takes [units, n]")
    layout = UnitLayout(x.dtype, x.shape[1], windows.width)
    raw = x.contiguous().view(torch.uint8).reshape(len(x), layout.raw_bytes)
    if layout.fixed_bytes == layout.raw_bytes or not len(x):
        sizes = torch.full((len(x),), layout.raw_bytes, dtype=torch.int64, device=x.device)
        return LosslessUnits(layout, windows, sizes, raw.reshape(-1))
    base = _of_units(windows, len(x))
    pieces = [raw.view(torch.int16).view(len(x), -1, 2)[..., 0]] if layout.low_bytes else []
    symbols, escaped = [], []
    for start, count, lanes in layout.tiles:
        exponent, rest = split(lanes_of(x[:, start : start + count]), x.dtype)
        code = ((exponent - base) & 255).clamp_max(2**layout.width - 1)
        head = code | (rest >> layout.byte_rows << layout.width)
        in_parts = [torch.nn.functional.pad(t, (0, PARTS * lanes - count)).view(-1, PARTS, lanes) for t in (rest, head, exponent)]
        pieces.append(_rows(in_parts[0], in_parts[1], layout))
        is_escape = torch.nn.functional.pad(code == 2**layout.width - 1, (0, PARTS * lanes - count)).view(-1, PARTS, lanes)
        symbols.append(_by_lane(in_parts[2]))
        escaped.append(_by_lane(is_escape))
    fixed = torch.cat([p.reshape(len(x), -1).to(torch.int16) for p in pieces], 1).view(torch.uint8)
    symbol, escape = torch.cat(symbols, 1).to(torch.uint8), torch.cat(escaped, 1)
    counts = escape.sum(1)
    tail = layout.tail_bytes(counts)
    as_is = tail == layout.raw_bytes - layout.fixed_bytes
    fixed = torch.where(as_is[:, None], raw[:, : layout.fixed_bytes], fixed)
    tails = torch.zeros(len(x), layout.raw_bytes - layout.fixed_bytes, dtype=torch.uint8, device=x.device)
    held = torch.arange(tails.shape[1], device=x.device)
    coded = torch.where(as_is, 0, counts)
    tails[held < coded[:, None]] = symbol[escape & ~as_is[:, None]]
    tails = torch.where(as_is[:, None], raw[:, layout.fixed_bytes :], tails)
    return LosslessUnits(layout, windows, tail + layout.fixed_bytes, torch.cat((fixed.reshape(-1), tails[held < tail[:, None]])))


def decode(units: LosslessUnits) -> torch.Tensor:
    """The values [units, n] bit for bit. Raises ValueError, naming the unit, if sizes and codes do not fit each other."""
    layout, count = units.layout, len(units.sizes)
    check_sizes(units)
    fixed = units.body[: count * layout.fixed_bytes].view(count, layout.fixed_bytes)
    spare = layout.raw_bytes - layout.fixed_bytes
    tail = units.sizes - layout.fixed_bytes
    held = torch.arange(spare, device=units.body.device)
    tails = torch.zeros(count, spare, dtype=torch.uint8, device=units.body.device)
    tails[held < tail[:, None]] = units.body[count * layout.fixed_bytes :]
    raw = torch.cat((fixed, tails), 1)
    if not spare or not count:
        return raw.view(layout.dtype).view(count, layout.n)
    base, limit = _of_units(units.windows, count), 2**layout.width - 1
    rests, codes, escaped = [], [], []
    at = layout.low_bytes
    for _, values, lanes in layout.tiles:
        rows = fixed[:, at : at + 2 * (layout.byte_rows + layout.head_bits) * lanes].contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
        at += 2 * (layout.byte_rows + layout.head_bits) * lanes
        rest, head = _parts(rows.view(count, -1, lanes), layout)
        inside = (torch.arange(PARTS * lanes, device=base.device) < values).view(PARTS, lanes)
        escaped.append(_by_lane((head & limit == limit) & inside))
        rests.append((rest | (head >> layout.width << layout.byte_rows)).reshape(count, -1)[:, :values])
        codes.append((head & limit).reshape(count, -1)[:, :values])
    escape = torch.cat(escaped, 1)
    as_is = tail == spare
    escapes = torch.where(as_is, 0, escape.sum(1))
    wrong = (~as_is & (layout.tail_bytes(escapes) != tail)).nonzero()
    if len(wrong):
        u = int(wrong[0])
        raise ValueError(f"unit {u} is damaged: its codes have {int(escapes[u])} escapes, its tail has {int(tail[u])} bytes")
    symbol = torch.zeros(escape.shape, dtype=torch.int32, device=base.device)
    symbol[escape & ~as_is[:, None]] = tails[held < escapes[:, None]].to(torch.int32)
    exponents, begun = [], 0
    for code, (_, values, lanes) in zip(codes, layout.tiles, strict=True):
        listed = _by_part(symbol[:, begun : begun + PARTS * lanes], lanes)[:, :values]
        begun += PARTS * lanes
        exponents.append(torch.where(code == limit, listed, (base + code) & 255))
    bits = joined(torch.cat(exponents, 1), torch.cat(rests, 1), layout.dtype)
    if layout.low_bytes:
        bits = (bits << 16) | (fixed[:, : layout.low_bytes].contiguous().view(torch.int16).to(torch.int32) & 0xFFFF)
    coded = bits.to(INTEGER[layout.dtype.itemsize]).view(torch.uint8)
    return torch.where(as_is[:, None], raw, coded).view(layout.dtype)


def check_sizes(units: LosslessUnits) -> None:
    """Raises ValueError, naming the unit, unless the sizes can be those of coded units and add up to the body."""
    layout, windows = units.layout, units.windows
    if windows.width != layout.width:
        raise ValueError(f"windows of {windows.width} bits ({len(windows.bases)} groups) do not fit units coded in {layout.width} bits")
    wrong = (units.sizes < layout.fixed_bytes) | (units.sizes > layout.raw_bytes) | (units.sizes % ALIGNMENT != 0)
    if wrong.any():
        u = int(wrong.nonzero()[0])
        raise ValueError(f"unit {u} is damaged: {int(units.sizes[u])} bytes, not {layout.fixed_bytes} to {layout.raw_bytes} in steps of 16")
    if int(units.sizes.sum()) != len(units.body):
        raise ValueError(f"{len(units.sizes)} units need {int(units.sizes.sum())} bytes; there are {len(units.body)}")


def _of_units(windows: Windows, count: int) -> torch.Tensor:
    group = torch.arange(count, device=windows.bases.device) % len(windows.bases)
    return windows.bases.to(torch.int32)[group][:, None]


def _rows(rest: torch.Tensor, head: torch.Tensor, layout: UnitLayout) -> torch.Tensor:
    """Rows [units, rows, lanes] of parts [units, 16, lanes]."""
    rows = [(rest[:, :8] & 255) | ((rest[:, 8:] & 255) << 8)] if layout.byte_rows else []
    for bits, lowest in layout.planes:
        field = (head >> lowest) & ((1 << bits) - 1)
        places = field.view(len(head), PARTS // bits, bits, -1)
        shift = torch.arange(0, PARTS, bits, device=head.device, dtype=torch.int32)[:, None, None]
        rows.append((places << shift).sum(1, dtype=torch.int32))
    return torch.cat(rows, 1)


def _parts(rows: torch.Tensor, layout: UnitLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of _rows: the low byte of mantissa and sign (0 without byte rows), and the head."""
    pairs = rows[:, : layout.byte_rows]
    rest = torch.cat((pairs & 255, pairs >> 8), 1) if layout.byte_rows else torch.zeros((), dtype=torch.int32, device=rows.device)
    head, at = torch.zeros(len(rows), PARTS, rows.shape[2], dtype=torch.int32, device=rows.device), layout.byte_rows
    for bits, lowest in layout.planes:
        shift = torch.arange(0, PARTS, bits, device=rows.device, dtype=torch.int32)[:, None, None]
        field = (rows[:, None, at : at + bits] >> shift) & ((1 << bits) - 1)
        head |= field.reshape(head.shape) << lowest
        at += bits
    return rest, head


def _by_lane(parts: torch.Tensor) -> torch.Tensor:
    """[units, 16, lanes] in the order of escapes: [units, lanes * 16]."""
    return parts.transpose(1, 2).reshape(len(parts), -1)


def _by_part(by_lane: torch.Tensor, lanes: int) -> torch.Tensor:
    return by_lane.view(len(by_lane), lanes, PARTS).transpose(1, 2).reshape(len(by_lane), -1)


def joined(exponent: torch.Tensor, rest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mantissa, sign = MANTISSA[dtype], 7 if dtype.itemsize == 1 else 15
    return (rest & ((1 << mantissa) - 1)) | (exponent << mantissa) | (rest >> mantissa << sign)

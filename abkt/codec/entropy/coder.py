"""The entropy form over a pool: its statistics once a strip, its cells' passes end to end, and back into blocks.

What a stream carries of the statistics, after its exact tokens: the centres [strips, dim] in the pool's dtype, one bit a strip that says
whether its centre turns, the base of RoPE's frequencies as a float64 (0 where none is known), and the scales, a byte each: of strip after
strip [levels + 1, dim]. Strips are numbered as [layers, kinds, heads]; the levels of differences of each stand in the header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.entropy import haar
from abkt.codec.entropy.oracle import decode_cells, encode_cells
from abkt.codec.entropy.stats import Stats, strip_groups, turn_of
from abkt.codec.fixed.backend import EXACT, CodedCells
from abkt.codec.fixed.oracle import deviation_of, tokens_of


@dataclass(frozen=True, slots=True)
class EntropyCoded:
    """coded: as of any backend, its body all passes of all cells end to end. lengths: [passes, cells] int64, bytes of each.
    levels: [strips] uint8, of differences. statistics: the bytes of `statistic_bytes`."""

    coded: CodedCells
    lengths: np.ndarray
    levels: np.ndarray
    statistics: bytes


def statistic_bytes(cells: Cells, itemsize: int, levels: np.ndarray) -> int:
    """What the statistics take on the wire; nothing if there are no cells."""
    strips = int(np.prod(cells.shape[:3]))
    scales = int((levels.astype(np.int64) + 1).sum()) * cells.dim
    return strips * cells.dim * itemsize + scales + -(-strips // 8) + 8 if cells.count else 0


def most_levels(cells: Cells) -> int:
    """Levels of differences that every tile has tokens for: whole groups in each, and whole eighths of groups in a full one."""
    possible = (n for n in range(haar.MOST_LEVELS + 1) if not (cells.layout.block_tokens % (1 << n) or cells.tile_tokens % (8 << n)))
    return max(possible, default=0)


def encode(data: torch.Tensor, blocks: list[int], cells: Cells, rope_theta: float | None, levels: np.ndarray | None = None) -> EntropyCoded:
    """Code what lies between the edges. rope_theta: base of the frequencies that K is turned with; None if it is not known, or K is
    turned otherwise, which costs bytes alone. levels: [layers, kinds, kv_heads] of differences, as calibrated (fewer where tiles are too
    short for so many); None leaves it to each strip."""
    layers, kinds, heads, _ = cells.shape
    lengths = np.zeros((cells.passes, *cells.shape), dtype=np.int64)
    errors, forms = np.zeros((cells.passes + 1, *cells.shape)), np.zeros(cells.shape, dtype=np.uint8)
    deviation, slots = np.zeros((layers, kinds, heads)), {}
    centre, turns = np.zeros((*cells.shape[:3], cells.dim), np.float32), np.zeros(cells.shape[:3], dtype=bool)
    scales: dict[tuple[int, ...], np.ndarray] = {}
    used, most = np.zeros(cells.shape[:3], dtype=np.uint8), most_levels(cells)
    if levels is not None:
        levels = np.minimum(levels, most).repeat(heads // levels.shape[2], 2)
    theta = rope_theta if rope_theta and _can_turn(cells) else 0.0
    turn = _turn(cells, theta)
    for layer, kind in np.ndindex(layers, kinds) if cells.count else ():
        held = data[torch.tensor(blocks, device=data.device), layer, kind]
        whole = tokens_of(held, cells.dim).cpu()
        x = whole.float().numpy()
        bad = np.zeros(x.shape[:2], dtype=bool)
        for these, stats in strip_groups(x, data.dtype, turn if kind == 0 else None, most if levels is None else levels[layer, kind]):
            centre[layer, kind, these], turns[layer, kind, these] = stats.centre, stats.turns
            used[layer, kind, these] = stats.levels
            scales |= {(layer, kind, head): scale for head, scale in zip(these.tolist(), stats.log_scale, strict=True)}
            for first, tokens, count in _of_equal_length(cells):
                span = slice(first * cells.tile_tokens, first * cells.tile_tokens + count * tokens)
                strip, start = np.repeat(np.arange(len(these)), count), np.tile(first + np.arange(count), len(these)) * cells.tile_tokens
                units = x[these, span].reshape(len(these) * count, tokens, cells.dim)
                done = encode_cells(units, strip, stats, cells.passes, data.dtype, start, turn)
                here = (layer, kind, these, slice(first, first + count))
                fell = done.fallback.reshape(len(these), count)
                forms[here] = np.where(fell, EXACT, 0)
                errors[:, layer, kind, these, first : first + count] = np.where(fell, 0.0, done.errors.reshape(-1, len(these), count))
                bad[these, span] = fell.repeat(tokens, 1)
                for p, row in enumerate(done.slots):
                    for (i, tile), slot in zip(np.ndindex(len(these), count), row, strict=True):
                        slots[p, layer, kind, int(these[i]), first + tile] = slot
                        lengths[p, layer, kind, these[i], first + tile] = len(slot)
        deviation[layer, kind] = deviation_of(whole, torch.from_numpy(~bad)).numpy()
    body = b"".join(slots[key] for key in sorted(slots))
    found = torch.frombuffer(bytearray(body), dtype=torch.uint8) if body else torch.zeros(0, dtype=torch.uint8)
    coded = CodedCells(found, errors.reshape(cells.passes + 1, -1), forms.reshape(-1), deviation)
    in_order = [scales[key] for key in sorted(scales)]
    statistics = _statistics(centre, in_order, turns, theta, data.dtype) if cells.count else b""
    return EntropyCoded(coded, lengths.reshape(cells.passes, -1), used.reshape(-1), statistics)


def expand(
    wire: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, present: np.ndarray, forms: np.ndarray, levels: np.ndarray, statistics: bytes,
    data: torch.Tensor, blocks: list[int], cells: Cells,
) -> None:  # fmt: skip
    """Write what arrived into a pool's tensor. offsets, sizes: [passes + 1, cells] of each slot in `wire`; present: [cells], passes
    that are there; levels: [strips]. Raises ValueError, naming the cell, for bytes that no encoder wrote, and writes nothing then."""
    heads = cells.shape[2]
    centre, scales, turns, theta = _read_statistics(statistics, cells, data.dtype, levels)
    turn = _turn(cells, theta)
    view, numbers = wire.data, np.arange(cells.count).reshape(np.prod(cells.shape[:3]), -1)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for of_kind in np.arange(len(levels)).reshape(-1, heads):  # a layer and kind at a time, to bound the memory
        for count in np.unique(levels[of_kind]).tolist():
            these = of_kind[levels[of_kind] == count]
            of = Stats(centre[these], np.stack([scales[s] for s in these]), turns[these], count)
            for first, tokens, tiles in _of_equal_length(cells):
                units = numbers[these, first : first + tiles].reshape(-1)
                strip, tile = np.repeat(np.arange(len(these)), tiles), np.tile(first + np.arange(tiles), len(these))
                coded = forms[units] != EXACT
                units, strip, tile = units[coded], strip[coded], tile[coded]
                if not len(units):
                    continue
                have = present[units].astype(np.int64)
                slots = [[bytes(view[o : o + n]) for o, n in zip(offsets[p][units].tolist(), sizes[p][units].tolist(), strict=True)]
                         for p in range(1, int(have.max()) + 1)]  # fmt: skip
                found.append((units, decode_cells(slots, strip, of, tokens, data.dtype, tile * cells.tile_tokens, turn, have)))
    parts = data.shape[-1] // cells.dim
    for units, values in found:
        for cell, x in zip(units.tolist(), values, strict=True):
            layer, kind, head, at = cells.place(cell)
            held = torch.tensor(blocks[cells.tile_blocks(at)], device=data.device)
            columns = slice(head % parts * cells.dim, (head % parts + 1) * cells.dim)
            data[held, layer, kind, head // parts, :, columns] = torch.from_numpy(x).to(data).view(len(held), -1, cells.dim)


def _of_equal_length(cells: Cells) -> list[tuple[int, int, int]]:
    """First tile, tokens a tile, and number of tiles: the full ones, then a shorter last one."""
    lengths = cells.tile_lengths
    full = sum(length == cells.tile_tokens for length in lengths)
    groups = [(0, cells.tile_tokens, full)] if full else []
    return groups + ([(full, lengths[-1], 1)] if full < len(lengths) else [])


def _can_turn(cells: Cells) -> bool:
    """Whether a strip is a whole head of K, so that channels c and c + dim / 2 turn together."""
    return cells.shape[1] > 1 and cells.dim == cells.layout.model.head_dim and cells.dim % 2 == 0


def _turn(cells: Cells, theta: float) -> np.ndarray | None:
    """Of the coded tokens. Positions count from the first of them: a turned level's own phase is in its centre."""
    return turn_of(sum(cells.tile_lengths), cells.dim, theta) if theta > 0 else None


def _statistics(centre: np.ndarray, scales: list[np.ndarray], turns: np.ndarray, theta: float, dtype: torch.dtype) -> bytes:
    centres = torch.from_numpy(centre).to(dtype).view(torch.uint8).numpy().tobytes()
    return b"".join((centres, np.packbits(turns.reshape(-1)).tobytes(), struct.pack("<d", theta), *(scale.tobytes() for scale in scales)))


def _read_statistics(
    data: bytes, cells: Cells, dtype: torch.dtype, levels: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, float]:
    """Centres [strips, dim], scales of each strip, turns [strips], and the base of RoPE."""
    strips = len(levels)
    at = strips * cells.dim * dtype.itemsize
    centre = torch.frombuffer(bytearray(data[:at]), dtype=dtype).float().numpy().reshape(strips, cells.dim)
    bits = np.frombuffer(data, np.uint8, -(-strips // 8), at)
    (theta,) = struct.unpack_from("<d", data, at + len(bits))
    turns = np.unpackbits(bits, count=strips).astype(bool)
    if not (np.isfinite(theta) and theta >= 0) or (turns.any() and not (theta > 0 and _can_turn(cells))):
        raise ValueError(f"stream is not valid: centres turn with base {theta}")
    ends = ((levels.astype(np.int64) + 1) * cells.dim).cumsum()
    scale = np.frombuffer(data, np.uint8, int(ends[-1]), at + len(bits) + 8)
    return centre, np.split(scale, ends[:-1]), turns, theta

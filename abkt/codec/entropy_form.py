"""The entropy form over a pool: its statistics once a strip, its cells' passes end to end, and back into blocks.

What a stream carries of the statistics, after its exact tokens: the centres [strips, dim] in the pool's dtype, the scales [strips, dim] one
byte each, one bit a strip that says whether its centre turns, and the base of RoPE's frequencies as a float64 (0 where none is known).
Strips are numbered as [layers, kinds, heads].
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.backend import EXACT, Coded
from abkt.codec.cells import Cells
from abkt.codec.entropy import Stats, decode_cells, encode_cells, strip_stats, turn_of
from abkt.codec.oracle import deviation_of, tokens_of


@dataclass(frozen=True, slots=True)
class EntropyCoded:
    """coded: as of any backend, its body all passes of all cells end to end. lengths: [passes, cells] int64, bytes of each.
    statistics: the bytes of `statistic_bytes`."""

    coded: Coded
    lengths: np.ndarray
    statistics: bytes


def statistic_bytes(cells: Cells, itemsize: int) -> int:
    """What the statistics take on the wire; nothing if there are no cells."""
    strips = int(np.prod(cells.shape[:3]))
    return strips * cells.dim * (itemsize + 1) + -(-strips // 8) + 8 if cells.count else 0


def encode(data: torch.Tensor, blocks: list[int], cells: Cells, rope_theta: float | None) -> EntropyCoded:
    """Code what lies between the edges. rope_theta: base of the frequencies that K is turned with; None if it is not known, or K is
    turned otherwise, which costs bytes alone."""
    layers, kinds, heads, _ = cells.shape
    lengths = np.zeros((cells.passes, *cells.shape), dtype=np.int64)
    errors, forms = np.zeros((cells.passes + 1, *cells.shape)), np.zeros(cells.shape, dtype=np.uint8)
    deviation, slots = np.zeros((layers, kinds, heads)), {}
    centre, scale = np.zeros((*cells.shape[:3], cells.dim), np.float32), np.zeros((*cells.shape[:3], cells.dim), np.uint8)
    turns = np.zeros(cells.shape[:3], dtype=bool)
    theta = rope_theta if rope_theta and _can_turn(cells) else 0.0
    turn = _turn(cells, theta)
    for layer, kind in np.ndindex(layers, kinds) if cells.count else ():
        held = data[torch.tensor(blocks, device=data.device), layer, kind]
        whole = tokens_of(held, cells.dim).cpu()
        x = whole.float().numpy()
        stats = strip_stats(x, data.dtype, turn if kind == 0 else None)
        centre[layer, kind], scale[layer, kind], turns[layer, kind] = stats.centre, stats.log_scale, stats.turns
        bad = np.zeros(x.shape[:2], dtype=bool)
        for first, tokens, count in _of_equal_length(cells):
            span = slice(first * cells.tile_tokens, first * cells.tile_tokens + count * tokens)
            strip, start = np.repeat(np.arange(heads), count), np.tile(first + np.arange(count), heads) * cells.tile_tokens
            units = x[:, span].reshape(heads * count, tokens, cells.dim)
            done = encode_cells(units, strip, stats, cells.passes, data.dtype, start, turn)
            here = (layer, kind, slice(None), slice(first, first + count))
            fell = done.fallback.reshape(heads, count)
            forms[here] = np.where(fell, EXACT, 0)
            errors[(slice(None), *here)] = np.where(fell, 0.0, done.errors.reshape(-1, heads, count))
            bad[:, span] = fell.repeat(tokens, 1)
            for p, row in enumerate(done.slots):
                for (head, tile), slot in zip(np.ndindex(heads, count), row, strict=True):
                    slots[p, layer, kind, head, first + tile] = slot
                    lengths[p, layer, kind, head, first + tile] = len(slot)
        deviation[layer, kind] = deviation_of(whole, torch.from_numpy(~bad)).numpy()
    body = b"".join(slots[key] for key in sorted(slots))
    found = torch.frombuffer(bytearray(body), dtype=torch.uint8) if body else torch.zeros(0, dtype=torch.uint8)
    coded = Coded(found, errors.reshape(cells.passes + 1, -1), forms.reshape(-1), deviation)
    return EntropyCoded(
        coded, lengths.reshape(cells.passes, -1), _statistics(centre, scale, turns, theta, data.dtype) if cells.count else b""
    )


def expand(
    wire: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, present: np.ndarray, forms: np.ndarray, statistics: bytes,
    data: torch.Tensor, blocks: list[int], cells: Cells,
) -> None:  # fmt: skip
    """Write what arrived into a pool's tensor. offsets, sizes: [passes + 1, cells] of each slot in `wire`; present: [cells], passes
    that are there. Raises ValueError, naming the cell, for bytes that no encoder wrote, and writes nothing then."""
    layers, kinds, heads, _ = cells.shape
    stats, theta = _read_statistics(statistics, cells, data.dtype)
    turn = _turn(cells, theta)
    view, numbers = wire.data, np.arange(cells.count).reshape(cells.shape)
    found: list[tuple[np.ndarray, int, np.ndarray]] = []
    for layer, kind in np.ndindex(layers, kinds):
        here = slice((layer * kinds + kind) * heads, (layer * kinds + kind + 1) * heads)
        of = Stats(stats.centre[here], stats.log_scale[here], stats.turns[here])
        for first, tokens, count in _of_equal_length(cells):
            units = numbers[layer, kind, :, first : first + count].reshape(-1)
            units = units[forms[units] != EXACT]
            if not len(units):
                continue
            _, _, strip, tile = np.unravel_index(units, cells.shape)
            have = present[units].astype(np.int64)
            slots = [[bytes(view[o : o + n]) for o, n in zip(offsets[p][units].tolist(), sizes[p][units].tolist(), strict=True)]
                     for p in range(1, int(have.max()) + 1)]  # fmt: skip
            found.append((units, tokens, decode_cells(slots, strip, of, tokens, data.dtype, tile * cells.tile_tokens, turn, have)))
    parts = data.shape[-1] // cells.dim
    for units, _, values in found:
        for cell, x in zip(units.tolist(), values, strict=True):
            layer, kind, head, tile = cells.place(cell)
            held = torch.tensor(blocks[cells.tile_blocks(tile)], device=data.device)
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


def _statistics(centre: np.ndarray, scale: np.ndarray, turns: np.ndarray, theta: float, dtype: torch.dtype) -> bytes:
    centres = torch.from_numpy(centre).to(dtype).view(torch.uint8).numpy().tobytes()
    return b"".join((centres, scale.tobytes(), np.packbits(turns.reshape(-1)).tobytes(), struct.pack("<d", theta)))


def _read_statistics(data: bytes, cells: Cells, dtype: torch.dtype) -> tuple[Stats, float]:
    strips = int(np.prod(cells.shape[:3]))
    count = strips * cells.dim
    centre = torch.frombuffer(bytearray(data[: count * dtype.itemsize]), dtype=dtype).float().numpy().reshape(strips, cells.dim)
    at = count * dtype.itemsize
    scale = np.frombuffer(data, np.uint8, count, at).reshape(strips, cells.dim)
    bits = np.frombuffer(data, np.uint8, -(-strips // 8), at + count)
    (theta,) = struct.unpack_from("<d", data, at + count + len(bits))
    turns = np.unpackbits(bits, count=strips).astype(bool)
    if not (np.isfinite(theta) and theta >= 0) or (turns.any() and not (theta > 0 and _can_turn(cells))):
        raise ValueError(f"stream is not valid: centres turn with base {theta}")
    return Stats(centre, scale, turns), theta

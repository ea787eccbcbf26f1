"""The entropy coder over a pool: the statistics of each strip, then the passes of its cells, end to end.

The bytes of a pass follow from its values, so the header's tables hold the size of each pass of each cell, uint16, or uint32 for cells
above 64 KiB, and the levels of differences of each strip, uint8. The statistics in the head are those of entropy/wire.py. There is no slot
of metadata: a cell's metadata begin its first pass (entropy/oracle.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.coder import VERBATIM, CodedCells, CodedSequence, StreamPrefix
from abkt.codec.entropy import haar, wire
from abkt.codec.entropy.compiled import decode_cells, deviation_of, encode_cells, strip_groups
from abkt.codec.entropy.oracle import max_pass_bytes
from abkt.codec.entropy.stats import Stats
from abkt.codec.entropy.wire import can_rotate, pack_statistics, read_statistics, rotation_of_cells
from abkt.spec import DTYPE_BYTES


def most_levels(cells: Cells) -> int:
    """The most levels of differences that the tiles allow: every tile must be whole groups of 2**levels tokens, and a full tile a multiple
    of eight such groups."""
    possible = (n for n in range(haar.MOST_LEVELS + 1) if not (cells.layout.block_tokens % (1 << n) or cells.tile_tokens % (8 << n)))
    return max(possible, default=0)


@dataclass(frozen=True, slots=True)
class EntropyCoder:
    """rope_theta: the base of RoPE's frequencies, from which K is predicted; None if it is unknown or K is rotated in another way, which
    costs bytes but no accuracy. levels: [layers, kinds, kv_heads] uint8, the calibrated levels of differences; fewer are used if tiles are
    too short for them. None chooses the levels of each strip from its values."""

    rope_theta: float | None
    levels: np.ndarray | None = None

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells) -> CodedSequence:
        _only_on_a_cpu(data)
        layers, kinds, heads, _ = cells.shape
        sizes = np.zeros((cells.passes + 1, *cells.shape), dtype=np.int64)
        errors, classes = np.zeros((cells.passes + 1, *cells.shape)), np.zeros(cells.shape, dtype=np.uint8)
        deviation, slots = np.zeros((layers, kinds, heads)), {}
        centre, rotates = np.zeros((*cells.shape[:3], cells.dim), np.float32), np.zeros(cells.shape[:3], dtype=bool)
        scales: dict[tuple[int, ...], np.ndarray] = {}
        used, most = np.zeros(cells.shape[:3], dtype=np.uint8), most_levels(cells)
        levels = None if self.levels is None else np.minimum(self.levels, most).repeat(heads // self.levels.shape[2], 2)
        theta = self.rope_theta if self.rope_theta and can_rotate(cells) else 0.0
        rotation = rotation_of_cells(cells, theta)
        for layer, kind in np.ndindex(layers, kinds) if cells.count else ():
            held = data[torch.tensor(blocks, device=data.device), layer, kind]
            x = _floats_of(held, cells.dim).numpy()
            bad = np.zeros(x.shape[:2], dtype=bool)
            for these, stats in strip_groups(
                x, data.dtype, rotation if kind == 0 else None, most if levels is None else levels[layer, kind]
            ):
                centre[layer, kind, these], rotates[layer, kind, these] = stats.centre, stats.rotates
                used[layer, kind, these] = stats.levels
                scales |= {(layer, kind, head): scale for head, scale in zip(these.tolist(), stats.log_scale, strict=True)}
                for first, tokens, count in _of_equal_length(cells):
                    span = slice(first * cells.tile_tokens, first * cells.tile_tokens + count * tokens)
                    strip, start = (
                        np.repeat(np.arange(len(these)), count),
                        np.tile(first + np.arange(count), len(these)) * cells.tile_tokens,
                    )
                    done = encode_cells(
                        x, these[strip] * x.shape[1] + start, tokens, strip, stats, cells.passes, data.dtype, start, rotation
                    )
                    here = (layer, kind, these, slice(first, first + count))
                    fell = done.fallback.reshape(len(these), count)
                    classes[here] = np.where(fell, VERBATIM, 0)
                    errors[:, layer, kind, these, first : first + count] = np.where(fell, 0.0, done.errors.reshape(-1, len(these), count))
                    bad[these, span] = fell.repeat(tokens, 1)
                    for p, row in enumerate(done.slots):
                        sizes[p + 1, layer, kind, these, first : first + count] = np.array([len(slot) for slot in row]).reshape(-1, count)
                        for i, head in enumerate(these.tolist()):
                            slots[p, layer, kind, head, first] = b"".join(row[i * count : (i + 1) * count])
            deviation[layer, kind] = deviation_of(x, bad)
        body = b"".join(slots[key] for key in sorted(slots))
        found = torch.frombuffer(bytearray(body), dtype=torch.uint8) if body else torch.zeros(0, dtype=torch.uint8)
        coded = CodedCells(found, errors.reshape(cells.passes + 1, -1), classes.reshape(-1), deviation)
        in_order = [scales[key] for key in sorted(scales)]
        statistics = pack_statistics(centre, in_order, rotates, theta, data.dtype) if cells.count else b""
        return CodedSequence(coded, sizes.reshape(cells.passes + 1, -1), used.reshape(-1), statistics)

    def expand(self, prefix: StreamPrefix, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        _only_on_a_cpu(data)
        heads = cells.shape[2]
        levels, offsets, sizes = prefix.levels, prefix.offsets, prefix.sizes
        centre, scales, rotates, theta = read_statistics(prefix.statistics, cells, data.dtype, levels)
        rotation = rotation_of_cells(cells, theta)
        view, numbers = prefix.wire.data, np.arange(cells.count).reshape(np.prod(cells.shape[:3]), -1)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for of_kind in np.arange(len(levels)).reshape(-1, heads):  # a layer and kind at a time, to bound the memory
            for count in np.unique(levels[of_kind]).tolist():
                these = of_kind[levels[of_kind] == count]
                of = Stats(centre[these], np.stack([scales[s] for s in these]), rotates[these], count)
                for first, tokens, tiles in _of_equal_length(cells):
                    units = numbers[these, first : first + tiles].reshape(-1)
                    strip, tile = np.repeat(np.arange(len(these)), tiles), np.tile(first + np.arange(tiles), len(these))
                    coded = prefix.classes[units] != VERBATIM
                    units, strip, tile = units[coded], strip[coded], tile[coded]
                    if not len(units):
                        continue
                    have = prefix.present[units].astype(np.int64)
                    slots = [[bytes(view[o : o + n]) for o, n in zip(offsets[p][units].tolist(), sizes[p][units].tolist(), strict=True)]
                             for p in range(1, int(have.max()) + 1)]  # fmt: skip
                    found.append((units, decode_cells(slots, strip, of, tokens, data.dtype, tile * cells.tile_tokens, rotation, have)))
        parts = data.shape[-1] // cells.dim
        for units, values in found:
            for cell, x in zip(units.tolist(), values, strict=True):
                layer, kind, head, at = cells.place(cell)
                held = torch.tensor(blocks[cells.tile_blocks(at)], device=data.device)
                columns = slice(head % parts * cells.dim, (head % parts + 1) * cells.dim)
                data[held, layer, kind, head // parts, :, columns] = torch.from_numpy(x).to(data).view(len(held), -1, cells.dim)

    @staticmethod
    def statistics_bytes(cells: Cells, levels: np.ndarray) -> int:
        return wire.statistics_bytes(cells, DTYPE_BYTES[cells.layout.model.dtype], levels)

    @staticmethod
    def tables_bytes(cells: Cells) -> int:
        return cells.count * cells.passes * np.dtype(_size_dtype(cells)).itemsize + _strips(cells)

    @staticmethod
    def pack_tables(cells: Cells, sizes: np.ndarray, levels: np.ndarray) -> bytes:
        return sizes[1:].astype(_size_dtype(cells)).tobytes() + levels.tobytes()

    @staticmethod
    def read_tables(data: memoryview, cells: Cells, verbatim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        passes = np.frombuffer(data, _size_dtype(cells), cells.passes * cells.count).reshape(cells.passes, cells.count).astype(np.int64)
        if passes[:, verbatim].any() or (passes > max_pass_bytes(cells.tile_tokens, cells.dim)).any():
            raise ValueError("stream header is not valid: a pass is longer than that of such a cell can be")
        levels = np.frombuffer(data, np.uint8, _strips(cells), passes.size * np.dtype(_size_dtype(cells)).itemsize)
        if levels.size and levels.max() > most_levels(cells):
            raise ValueError(
                f"stream header is not valid: {levels.max()} levels of differences; these tiles have at most {most_levels(cells)}"
            )
        return np.concatenate((np.zeros_like(passes[:1]), passes)), levels


def _floats_of(held: torch.Tensor, dim: int) -> torch.Tensor:
    """Blocks [blocks, kv_heads, tokens, head_dim] as float32 [heads or parts of heads, coded tokens, channels], in one copy."""
    blocks, kv_heads, tokens, head_dim = held.shape
    parts = held.view(blocks, kv_heads, tokens, head_dim // dim, dim).permute(1, 3, 0, 2, 4)
    return torch.empty(parts.shape, dtype=torch.float32).copy_(parts).view(-1, blocks * tokens, dim)


def _of_equal_length(cells: Cells) -> list[tuple[int, int, int]]:
    """(first tile, tokens per tile, number of tiles) of the full tiles, then of a shorter last tile."""
    lengths = cells.tile_lengths
    full = sum(length == cells.tile_tokens for length in lengths)
    groups = [(0, cells.tile_tokens, full)] if full else []
    return groups + ([(full, lengths[-1], 1)] if full < len(lengths) else [])


def _strips(cells: Cells) -> int:
    return int(np.prod(cells.shape[:3]))


def _size_dtype(cells: Cells) -> str:
    return "<u2" if max_pass_bytes(cells.tile_tokens, cells.dim) <= 65_535 else "<u4"


def _only_on_a_cpu(data: torch.Tensor) -> None:
    """Raises ValueError for a pool elsewhere: there are no kernels, and a silent trip through the host would take thousands of times longer
    than the fixed coder."""
    if data.device.type != "cpu":
        raise ValueError(f"the entropy coder runs on the CPU, and this pool is on {data.device}: take coder=fixed, or a pool on the CPU")

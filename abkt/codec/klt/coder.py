"""The klt coder over a pool: the classes of all tokens and the means of all heads, then the bit-planes of each cell's coefficients.

The heads of a group (basis.py) are scaled each by its own token classes, and turn together. Their coefficients are dealt to the cells of
the group by falling variance: the first cell holds the largest. Where a head is coded in parts (cells.py), so are its coefficients. The
head of the stream's tables hold the digest of the calibration (8 bytes), where each of the statistics ends (uint32 each), and the bytes of
each pass of each cell (24 bits). The statistics are three tables (table.py): the classes, the means, and the coefficients of the first
token, in first steps at its own scale. That token is an attention sink in many models: without it all else is worth little, however small
the gradient says that it is, so it is no part of the cells and always there. A value that is not finite, or too large, sends its whole
group and tile verbatim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.coder import VERBATIM, CodedCells, CodedSequence, StreamPrefix
from abkt.codec.fixed.oracle import tokens_of
from abkt.codec.klt.basis import PLANES, Basis, by_layer
from abkt.codec.klt.compiled import Seen, decode_cell, encode_cell, pack, unpack
from abkt.codec.klt.planes import MOST, PlaneTables
from abkt.codec.klt.weights import HIDDEN, NEVER, TOP, bounded, group_classes, plain_classes, scale_of, token_classes

TILE_TOKENS = 1024
MEANS_PER_STEP = 8  # a mean is sent in eighths of the first step
DIGEST_BYTES, SIZE_BYTES = 8, 3
NAMED = DIGEST_BYTES + 12


def tile_tokens(block_tokens: int) -> int:
    """Tokens of a tile: at most TILE_TOKENS in whole blocks. Long tiles, because each pass of a cell costs 8 bytes of tables."""
    return max(1, TILE_TOKENS // block_tokens) * block_tokens


@dataclass(slots=True)
class KltCoder:
    """basis: the model's; None: every call raises ValueError, one line. seen: what coefficients turned out to be; a calibration reads
    it."""

    basis: Basis | None
    importance: torch.Tensor | None = None
    seen: Seen | None = None

    def weighed(self, importance: torch.Tensor | None) -> KltCoder:
        """The same coder for a sequence whose last queries were observed. importance: [layers, 2, kv_heads, tokens]."""
        return KltCoder(self.basis, importance, self.seen)

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells) -> CodedSequence:
        basis = self._basis()
        classes = self.classes(cells)
        tables = _tables(basis, cells.depth_bits)
        kept = np.zeros(cells.shape, dtype=np.uint8)
        sizes, errors = np.zeros((cells.passes + 1, *cells.shape), np.int64), np.zeros((cells.passes + 1, *cells.shape))
        means = np.zeros(basis.deviation.shape, dtype=np.int32)
        sinks, finest = np.zeros_like(means), float(1 << tables.planes[-1])
        unit, skipped = basis.step / MEANS_PER_STEP, min(basis.first.shape[-1], cells.tokens // 2)
        slots: dict[tuple[int, ...], bytes] = {}
        for number, members in enumerate(basis.members):
            z, (matrix, inverse), of = centred(data, blocks, members, cells.tokens, basis), basis.matrix(number), tuple(members.T)
            good = torch.isfinite(z).all(-1).all(0)
            z = torch.where(good[:, None], z, 0.0)
            scale = torch.from_numpy(scale_of(classes[of]))[..., None]
            counted = (scale.square() * good[:, None])[:, skipped:]
            mean = matrix @ ((z[:, skipped:] * counted).sum(1) / counted.sum(1).clamp_min(1e-30)).reshape(-1)
            mean = (mean / unit).nan_to_num().round().clamp(-(1 << 20), 1 << 20)
            means[of] = mean.reshape(len(members), -1).int().numpy()
            z = (z - (inverse @ (mean * unit)).reshape(len(members), 1, -1)) * scale
            values = (z.transpose(0, 1).flatten(1) @ matrix.mT * (finest / basis.step)).numpy()
            sink = np.clip(np.round(np.nan_to_num(values[0]) / finest), -MOST, MOST).astype(np.int32)
            sinks[of], sunk = sink.reshape(len(members), -1), np.square(values[0] - sink * finest)
            good[0] &= bool(np.abs(values[0]).max() < MOST * finest)
            values[0] = 0
            token = group_classes(classes[of])
            token[0] = NEVER
            for tile, (start, stop) in enumerate(_spans(cells)):
                places = [(*place, tile) for place in _cells_of(members, cells)]
                if not bool(good[start:stop].all()) or not np.abs(values[start:stop]).max() < MOST:
                    kept[tuple(np.array(places).T)] = VERBATIM
                    continue
                for chunk, here in enumerate(places):
                    columns = slice(chunk * cells.dim, (chunk + 1) * cells.dim)
                    coded, left = encode_cell(values[start:stop, columns], token[start:stop], _klass(basis, here, cells), tables, self.seen)
                    errors[(slice(None), *here)] = left + (sunk[columns].sum() if start == 0 else 0.0)
                    for p, slot in enumerate(coded, 1):
                        slots[p, *here], sizes[p, *here] = slot, len(slot)
        body = b"".join(slots[key] for key in sorted(slots))
        found = torch.frombuffer(bytearray(body), dtype=torch.uint8) if body else torch.zeros(0, dtype=torch.uint8)
        nats = basis.nats / cells.tokens * (basis.step / (1 << tables.planes[-1])) ** 2
        deviation = np.ones(cells.shape[:3])
        coded_cells = CodedCells(found, errors.reshape(cells.passes + 1, -1) * nats, kept.reshape(-1), deviation)
        ranks, dim = basis.ranks(), cells.layout.model.head_dim
        statistics = [
            pack(classes.reshape(-1, cells.tokens), True),
            pack(means.ravel()[ranks].reshape(-1, dim), False),
            pack(sinks.ravel()[ranks].reshape(-1, dim), False),
        ]
        ends = np.cumsum([len(part) for part in statistics]).astype("<u4")
        named = np.frombuffer(bytes.fromhex(basis.digest) + ends.tobytes(), np.uint8)
        return CodedSequence(coded_cells, sizes.reshape(cells.passes + 1, -1), named, b"".join(statistics))

    def expand(self, prefix: StreamPrefix, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        basis = self._basis()
        of_tokens, of_means, end = np.frombuffer(prefix.levels[DIGEST_BYTES:].tobytes(), "<u4").tolist()
        digest = prefix.levels[:DIGEST_BYTES].tobytes().hex()
        if digest != basis.digest:
            raise ValueError(f"the stream was coded with calibration {digest}, and this side has {basis.digest}: give both the same file")
        shape = basis.deviation.shape
        classes = unpack(prefix.statistics[:of_tokens], int(np.prod(shape[:3])), cells.tokens, True).reshape(*shape[:3], cells.tokens)
        means, sinks = np.zeros((2, int(np.prod(shape))), np.int32)
        for table, part in ((means, prefix.statistics[of_tokens:of_means]), (sinks, prefix.statistics[of_means:end])):
            table[basis.ranks()] = unpack(part, int(np.prod(shape[:3])), shape[3], False).ravel()
        means, sinks = means.reshape(shape), sinks.reshape(shape)
        if classes.min() < HIDDEN or classes.max() > TOP:
            raise ValueError("stream is not valid: a token's class is out of range; its bytes are damaged")
        tables, view = _tables(basis, cells.depth_bits), prefix.wire.data
        kept, present = prefix.classes.reshape(cells.shape), prefix.present.reshape(cells.shape)
        offsets, sizes = (a.reshape(cells.passes + 1, *cells.shape) for a in (prefix.offsets, prefix.sizes))
        finest, unit = float(1 << tables.planes[-1]), basis.step / MEANS_PER_STEP
        for number, members in enumerate(basis.members):
            (_, inverse), of = basis.matrix(number), tuple(members.T)
            token = group_classes(classes[of])
            token[0] = NEVER
            values = np.zeros((cells.tokens, len(inverse)), dtype=np.float32)
            for tile, (start, stop) in enumerate(_spans(cells)):
                for chunk, here in enumerate((*place, tile) for place in _cells_of(members, cells)):
                    if kept[here] == VERBATIM:
                        continue
                    have = range(1, int(present[here]) + 1)
                    slots = [bytes(view[(at := int(offsets[p, *here])) : at + int(sizes[p, *here])]) for p in have]
                    coded = decode_cell(slots, token[start:stop], _klass(basis, here, cells), tables)
                    values[start:stop, chunk * cells.dim : (chunk + 1) * cells.dim] = coded
            values[0] = sinks[of].reshape(-1) * finest
            z = (torch.from_numpy(values) @ inverse.mT * (basis.step / finest)).unflatten(1, (len(members), -1)).transpose(0, 1)
            z = z / torch.from_numpy(scale_of(classes[of]))[..., None]
            z = z + (inverse @ (torch.from_numpy(means[of].reshape(-1).astype(np.float32)) * unit)).reshape(len(members), 1, -1)
            _put(z, data, blocks, members, kept, cells, basis)

    def _basis(self) -> Basis:
        if self.basis is None:
            raise ValueError(
                "coder klt needs a calibration with a klt basis; make one with abkt quality calibrate=true, or take coder entropy"
            )
        return self.basis

    def classes(self, cells: Cells) -> np.ndarray:
        """Token classes of each head, [layers, kinds, kv_heads, tokens]."""
        basis = self._basis()
        layers, kinds, heads, _ = cells.shape
        heads //= cells.layout.model.head_dim // cells.dim
        if self.importance is None:
            plain = np.stack([plain_classes(kinds, heads, cells.tokens, basis.first[layer]) for layer in range(layers)])
            return bounded(plain, basis.members)
        given = self.importance.cpu().numpy()
        if given.shape != (layers, kinds, heads, cells.tokens):
            raise ValueError(
                f"importance {list(given.shape)} does not fit; [layers, kinds, kv_heads, tokens] = {[layers, kinds, heads, cells.tokens]}"
            )
        found = np.stack([token_classes(given[layer], basis.exponent, basis.mixing, basis.first[layer]) for layer in range(layers)])
        return bounded(found, basis.members)

    @staticmethod
    def statistics_bytes(cells: Cells, levels: np.ndarray) -> int:
        return int(np.frombuffer(levels[DIGEST_BYTES:].tobytes(), "<u4")[-1])

    @staticmethod
    def tables_bytes(cells: Cells) -> int:
        return NAMED + SIZE_BYTES * cells.count * cells.passes

    @staticmethod
    def pack_tables(cells: Cells, sizes: np.ndarray, levels: np.ndarray) -> bytes:
        return levels.tobytes() + sizes[1:].astype("<u4").reshape(-1, 1).view(np.uint8)[:, :SIZE_BYTES].tobytes()

    @staticmethod
    def read_tables(data: memoryview, cells: Cells, verbatim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        levels = np.frombuffer(data, np.uint8, NAMED).copy()
        packed = np.frombuffer(data, np.uint8, SIZE_BYTES * cells.count * cells.passes, NAMED).reshape(-1, SIZE_BYTES)
        sizes = np.pad(packed, ((0, 0), (0, 1))).view("<u4").reshape(cells.passes, cells.count).astype(np.int64)
        ends = np.frombuffer(levels[DIGEST_BYTES:].tobytes(), "<u4").astype(np.int64)
        if sizes[:, verbatim].any() or (np.diff(ends) < 0).any() or ends[-1] > 1 << 31:
            raise ValueError("stream header is not valid: a cell that is not coded has passes, or the statistics have no end")
        return np.concatenate((np.zeros_like(sizes[:1]), sizes)), levels


def _tables(basis: Basis, depth_bits: int) -> PlaneTables:
    from abkt.codec.cells import PASSES

    return PlaneTables(basis.chances, basis.points, PLANES[: PASSES[depth_bits]])


def _spans(cells: Cells) -> list[tuple[int, int]]:
    """(first token, token after the last) of each tile."""
    ends = np.cumsum(cells.tile_lengths).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _cells_of(members: np.ndarray, cells: Cells) -> list[tuple[int, int, int]]:
    """(layer, kind, head or part) of the cells of a group, in the order in which its coefficients are dealt."""
    parts = cells.layout.model.head_dim // cells.dim
    return [(layer, kind, head * parts + part) for layer, kind, head in members.tolist() for part in range(parts)]


def _klass(basis: Basis, here: tuple[int, ...], cells: Cells) -> np.ndarray:
    """Classes of the coefficients of a cell."""
    layer, kind, part, _ = here
    head, part = divmod(part, cells.layout.model.head_dim // cells.dim)
    return basis.klass(layer, kind, head)[part * cells.dim : (part + 1) * cells.dim]


def centred(data: torch.Tensor, blocks: list[int], members: np.ndarray, tokens: int, basis: Basis) -> torch.Tensor:
    """The heads of a group about their means, K without its rotation: [heads, tokens, head_dim] float32."""
    found = []
    for layer, kind, _, heads in by_layer(members):
        held = data[torch.tensor(blocks, device=data.device), layer, kind][:, torch.from_numpy(heads).to(data.device)]
        x = tokens_of(held, held.shape[-1])[:, :tokens].cpu().float()
        x = basis.rotary.turned(x, layer, back=True) if kind == 0 else x
        found.append(x - torch.from_numpy(basis.mean[layer, kind, heads])[:, None])
    return torch.cat(found)


def _put(z: torch.Tensor, data: torch.Tensor, blocks: list[int], members: np.ndarray, kept: np.ndarray, cells: Cells, basis: Basis) -> None:
    """The inverse of `centred`: write the heads into the pool, except in tiles that are verbatim."""
    parts, size = cells.layout.model.head_dim // cells.dim, cells.layout.block_tokens
    for layer, kind, rows, heads in by_layer(members):
        x = z[rows] + torch.from_numpy(basis.mean[layer, kind, heads])[:, None]
        x = (basis.rotary.turned(x, layer) if kind == 0 else x).to(data)
        for tile, (start, stop) in enumerate(_spans(cells)):
            for row, head in enumerate(heads.tolist()):
                if kept[layer, kind, head * parts, tile] == VERBATIM:
                    continue
                for i, block in enumerate(blocks[cells.tile_blocks(tile)]):
                    a, b = start + i * size, min(stop, start + (i + 1) * size)
                    data[block, layer, kind, head, : b - a] = x[row, a:b]

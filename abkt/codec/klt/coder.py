"""The klt coder over a pool: the classes of all tokens and the means of all heads, then the bit-planes of each cell's coefficients.

A cell's coefficients are those of one head; where a head is coded in parts (cells.py), the first part holds the coefficients of most
variance. The head of the stream's tables hold the digest of the calibration (8 bytes), where each of the statistics ends (uint32 each), and
the bytes of each pass of each cell (24 bits). The statistics are three tables (table.py): the classes, the means, and the coefficients of
the first token, in first steps at its own scale. That token is an attention sink in many models: without it all else is worth little,
however small the gradient says that it is, so it is no part of the cells and always there. A value that is not finite, or too large, sends
its whole head and tile verbatim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.coder import VERBATIM, CodedCells, CodedSequence, StreamPrefix
from abkt.codec.fixed.oracle import tokens_of
from abkt.codec.klt.basis import PLANES, Basis
from abkt.codec.klt.compiled import Seen, decode_cell, encode_cell, pack, unpack
from abkt.codec.klt.planes import MOST, PlaneTables
from abkt.codec.klt.weights import HIDDEN, NEVER, TOP, plain_classes, plane_classes, scale_of, token_classes

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
        layers, kinds, heads, _ = cells.shape
        parts = cells.layout.model.head_dim // cells.dim
        classes = self._classes(basis, cells)
        tables = _tables(basis, cells.depth_bits)
        kept = np.zeros(cells.shape, dtype=np.uint8)
        sizes, errors = np.zeros((cells.passes + 1, *cells.shape), np.int64), np.zeros((cells.passes + 1, *cells.shape))
        means = np.zeros((layers, kinds, heads // parts, cells.layout.model.head_dim), dtype=np.int32)
        sinks, finest = np.zeros_like(means), float(1 << tables.planes[-1])
        slots: dict[tuple[int, ...], bytes] = {}
        spans = _spans(cells)
        for layer, kind in np.ndindex(layers, kinds):
            x = _strip(data, blocks, layer, kind, cells.tokens, basis)
            good = torch.isfinite(x).all(-1)
            scale = torch.from_numpy(scale_of(classes[layer, kind]))[..., None]
            forward = torch.from_numpy(basis.forward[layer, kind])
            y = (torch.where(good[..., None], x, 0.0) - torch.from_numpy(basis.mean[layer, kind])[:, None]) @ forward.mT
            counted = (scale.square() * good[..., None])[:, min(basis.first.shape[-1], cells.tokens // 2) :]
            mean = (y[:, y.shape[1] - counted.shape[1] :] * counted).sum(1) / counted.sum(1).clamp_min(1e-30)
            unit = basis.step / MEANS_PER_STEP
            means[layer, kind] = (mean / unit).round().clamp(-(1 << 20), 1 << 20).int().numpy()
            y = (y - torch.from_numpy(means[layer, kind].astype(np.float32))[:, None] * unit) * scale * (finest / basis.step)
            values = y.numpy()
            sinks[layer, kind] = np.clip(np.round(np.nan_to_num(values[:, 0]) / finest), -MOST, MOST)
            sunk = np.square(values[:, 0] - sinks[layer, kind] * finest)
            values[:, 0] = 0
            for head, (tile, (start, stop)) in ((h, each) for h in range(heads) for each in enumerate(spans)):
                of, part = divmod(head, parts)
                columns = slice(part * cells.dim, (part + 1) * cells.dim)
                here = (layer, kind, head, tile)
                cell = values[of, start:stop, columns]
                if not bool(good[of, start:stop].all()) or np.abs(values[of, start:stop]).max() >= (1 << 24):
                    kept[here] = VERBATIM
                    continue
                klass = basis.klass(layer, kind, of)[columns]
                token = plane_classes(classes[layer, kind, of, start:stop])
                if start == 0:
                    token[0] = NEVER
                coded, left = encode_cell(cell, token, klass, tables, self.seen)
                errors[(slice(None), *here)] = left + (sunk[of, columns].sum() if start == 0 else 0.0)
                for p, slot in enumerate(coded, 1):
                    slots[p, *here], sizes[p, *here] = slot, len(slot)
        body = b"".join(slots[key] for key in sorted(slots))
        found = torch.frombuffer(bytearray(body), dtype=torch.uint8) if body else torch.zeros(0, dtype=torch.uint8)
        nats = basis.nats / cells.tokens * (basis.step / (1 << tables.planes[-1])) ** 2
        deviation = np.ones(cells.shape[:3])
        coded_cells = CodedCells(found, errors.reshape(cells.passes + 1, -1) * nats, kept.reshape(-1), deviation)
        dim = means.shape[-1]
        statistics = [
            pack(classes.reshape(-1, cells.tokens), True),
            pack(means.reshape(-1, dim), False),
            pack(sinks.reshape(-1, dim), False),
        ]
        ends = np.cumsum([len(part) for part in statistics]).astype("<u4")
        named = np.frombuffer(bytes.fromhex(basis.digest) + ends.tobytes(), np.uint8)
        return CodedSequence(coded_cells, sizes.reshape(cells.passes + 1, -1), named, b"".join(statistics))

    def expand(self, prefix: StreamPrefix, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        basis = self._basis()
        layers, kinds, heads, _ = cells.shape
        parts, dim = cells.layout.model.head_dim // cells.dim, cells.layout.model.head_dim
        of_tokens, of_means, end = np.frombuffer(prefix.levels[DIGEST_BYTES:].tobytes(), "<u4").tolist()
        digest = prefix.levels[:DIGEST_BYTES].tobytes().hex()
        if digest != basis.digest:
            raise ValueError(f"the stream was coded with calibration {digest}, and this side has {basis.digest}: give both the same file")
        shape = (layers, kinds, heads // parts)
        classes = unpack(prefix.statistics[:of_tokens], int(np.prod(shape)), cells.tokens, True).reshape(*shape, cells.tokens)
        means = unpack(prefix.statistics[of_tokens:of_means], int(np.prod(shape)), dim, False).reshape(*shape, dim)
        sinks = unpack(prefix.statistics[of_means:end], int(np.prod(shape)), dim, False).reshape(*shape, dim)
        if classes.min() < HIDDEN or classes.max() > TOP:
            raise ValueError("stream is not valid: a token's class is out of range; its bytes are damaged")
        tables, view, size = _tables(basis, cells.depth_bits), prefix.wire.data, cells.layout.block_tokens
        kept, present = prefix.classes.reshape(cells.shape), prefix.present.reshape(cells.shape)
        offsets, sizes = (a.reshape(cells.passes + 1, *cells.shape).tolist() for a in (prefix.offsets, prefix.sizes))
        finest, unit = float(1 << tables.planes[-1]), basis.step / MEANS_PER_STEP
        for layer, kind in np.ndindex(layers, kinds):
            y = np.zeros((heads // parts, cells.tokens, dim), dtype=np.float32)
            for head, (tile, (start, stop)) in ((h, each) for h in range(heads) for each in enumerate(_spans(cells))):
                if kept[layer, kind, head, tile] == VERBATIM:
                    continue
                of, part = divmod(head, parts)
                columns = slice(part * cells.dim, (part + 1) * cells.dim)
                have = range(1, int(present[layer, kind, head, tile]) + 1)
                places = [(offsets[p][layer][kind][head][tile], sizes[p][layer][kind][head][tile]) for p in have]
                slots = [bytes(view[at : at + length]) for at, length in places]
                token = plane_classes(classes[layer, kind, of, start:stop])
                if start == 0:
                    token[0] = NEVER
                y[of, start:stop, columns] = decode_cell(slots, token, basis.klass(layer, kind, of)[columns], tables)
            y[:, 0] = sinks[layer, kind] * finest
            scaled = torch.from_numpy(y) * (basis.step / finest) / torch.from_numpy(scale_of(classes[layer, kind]))[..., None]
            scaled += torch.from_numpy(means[layer, kind].astype(np.float32))[:, None] * unit
            x = scaled @ torch.from_numpy(basis.inverse[layer, kind]).mT + torch.from_numpy(basis.mean[layer, kind])[:, None]
            if kind == 0:
                x = basis.rotary.turned(x, layer)
            x = x.to(data)
            for tile, (start, stop) in enumerate(_spans(cells)):
                for of in np.flatnonzero(kept[layer, kind, ::parts, tile] != VERBATIM).tolist():
                    for i, block in enumerate(blocks[cells.tile_blocks(tile)]):
                        a, b = start + i * size, min(stop, start + (i + 1) * size)
                        data[block, layer, kind, of, : b - a] = x[of, a:b]

    def _basis(self) -> Basis:
        if self.basis is None:
            raise ValueError(
                "coder klt needs a calibration with a klt basis; make one with abkt quality calibrate=true, or take coder entropy"
            )
        return self.basis

    def _classes(self, basis: Basis, cells: Cells) -> np.ndarray:
        layers, kinds, heads, _ = cells.shape
        heads //= cells.layout.model.head_dim // cells.dim
        if self.importance is None:
            return np.stack([plain_classes(kinds, heads, cells.tokens, basis.first[layer]) for layer in range(layers)])
        given = self.importance.cpu().numpy()
        if given.shape != (layers, kinds, heads, cells.tokens):
            raise ValueError(
                f"importance {list(given.shape)} does not fit; [layers, kinds, kv_heads, tokens] = {[layers, kinds, heads, cells.tokens]}"
            )
        return np.stack([token_classes(given[layer], basis.exponent, basis.mixing, basis.first[layer]) for layer in range(layers)])

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


def _strip(data: torch.Tensor, blocks: list[int], layer: int, kind: int, tokens: int, basis: Basis) -> torch.Tensor:
    """K without its rotation, or V: [kv_heads, tokens, head_dim] float32 on the CPU."""
    held = data[torch.tensor(blocks, device=data.device), layer, kind]
    x = tokens_of(held, held.shape[-1])[:, :tokens].cpu().float()
    return basis.rotary.turned(x, layer, back=True) if kind == 0 else x

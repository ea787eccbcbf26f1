"""The reference backend: the quantiser of quantize.py over a whole pool, one layer at a time, in plain torch. It is slow; the others must
equal it."""

from __future__ import annotations

import numpy as np
import torch

from abkt.codec.cells import WIDTHS, Cells
from abkt.codec.coder import VERBATIM, CodedCells
from abkt.codec.fixed import quantize as q
from abkt.codec.fixed.backend import Arrived, checksums


class OracleBackend:
    def describe(self) -> str:
        return "oracle (torch, eager)"

    checksums = staticmethod(checksums)

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells, centres: np.ndarray) -> CodedCells:
        layers, kinds, heads, _ = cells.shape
        body = torch.zeros(cells.body_bytes, dtype=torch.uint8)
        errors = np.zeros((cells.passes + 1, *cells.shape))
        classes = np.full(cells.shape, VERBATIM, dtype=np.uint8)
        deviation = np.zeros((layers, kinds, heads))
        table = torch.tensor(blocks, dtype=torch.long, device=data.device)
        for layer, kind in np.ndindex(layers, kinds):
            whole = tokens_of(data[table, layer, kind], cells.dim).cpu()
            centre, dim = _centre(centres, layer, kind), q.GROUP_DIM[kind]
            verbatim = torch.zeros(whole.shape[:2], dtype=torch.bool)
            for tile, tokens in enumerate(cells.tile_lengths):
                span = slice(tile * cells.tile_tokens, tile * cells.tile_tokens + tokens)
                bad = q.travels_verbatim(whole[:, span].float() - centre, data.dtype)
                verbatim[:, span] = bad[:, None]
                x = torch.where(bad[:, None, None], 0.0, whole[:, span])
                coded = q.quantize(x.float() - centre, dim, data.dtype, cells.depth_bits)
                by_token, first_strip = q.squared_errors(x, coded, centre, cells.passes), (layer * kinds + kind) * heads
                for head in (h for h in range(heads) if not bad[h]):
                    chosen = q.measured(tokens, first_strip + head, tile)
                    errors[:, layer, kind, head, tile] = q.cell_errors(by_token[head], coded.step[head], chosen).numpy()
                classes[layer, kind, :, tile] = np.where(bad.numpy(), VERBATIM, coded.spread.numpy())
                packed = [q.pack_metadata(coded, dim, data.dtype)]
                packed += [q.pack_pass(coded.codes, index).flatten(1) for index in range(1, cells.passes + 1)]
                for head in (h for h in range(heads) if not bad[h]):
                    cell = np.ravel_multi_index((layer, kind, head, tile), cells.shape)
                    for slot, offset in zip(packed, cells.offsets[:, cell].tolist(), strict=True):
                        body[offset : offset + slot.shape[1]] = slot[head]
            deviation[layer, kind] = deviation_of(whole, ~verbatim).numpy()
        return CodedCells(body, errors.reshape(cells.passes + 1, -1), classes.reshape(-1), deviation)

    def expand(self, arrived: Arrived, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        dim, meta = cells.dim, data.element_size() + 2
        buffer, offsets = torch.tensor(arrived.wire), arrived.offsets
        parts = data.shape[-1] // dim
        for cell in np.flatnonzero(arrived.classes != VERBATIM).tolist():
            layer, kind, head, tile = cells.place(cell)
            tokens, passes = cells.tile_lengths[tile], int(arrived.present[cell])
            eighth = -(-tokens // 8)

            def slot(index: int, size: int, cell: int = cell) -> torch.Tensor:
                return buffer[offsets[index, cell] : offsets[index, cell] + size]

            low, step, mean = q.unpack_metadata(slot(0, (tokens if kind else dim) * meta), q.GROUP_DIM[kind], data.dtype)
            codes = torch.zeros(tokens, dim, dtype=torch.uint8)
            for index in range(1, passes + 1):
                rows = eighth * WIDTHS[index - 1]
                codes |= q.unpack_pass(slot(index, rows * dim).view(rows, dim), index, tokens)
            x = q.reconstruct(q.Quantized(codes, low, step, mean, torch.tensor(int(arrived.classes[cell]))), passes)
            x = (x + _centre(arrived.centres, layer, kind)[head if kind else 0]).to(data.dtype)
            held = torch.tensor(blocks[cells.tile_blocks(tile)], dtype=torch.long, device=data.device)
            columns = slice(head % parts * dim, (head % parts + 1) * dim)
            data[held, layer, kind, head // parts, :, columns] = x.view(len(held), -1, dim).to(data.device)


def tokens_of(held: torch.Tensor, dim: int) -> torch.Tensor:
    """Blocks [blocks, kv_heads, tokens, head_dim] as [heads or parts of heads, coded tokens, channels]."""
    blocks, kv_heads, tokens, head_dim = held.shape
    parts = held.view(blocks, kv_heads, tokens, head_dim // dim, dim).permute(1, 3, 0, 2, 4)
    return parts.reshape(kv_heads * head_dim // dim, blocks * tokens, dim)


def _centre(centres: np.ndarray, layer: int, kind: int) -> torch.Tensor:
    """The centres [heads, 1, channels] of V; zeros for K or a latent, for any head."""
    return torch.tensor(centres[layer])[:, None] if kind else torch.zeros(1, 1, centres.shape[-1])


def deviation_of(x: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Squared deviation from channel means of the counted tokens of x [heads, tokens, channels]: [heads] float64."""
    kept = x.double().masked_fill(~counted[..., None], 0.0)
    mean = kept.sum(1, keepdim=True) / counted.sum(1).clamp_min(1)[:, None, None]
    return ((kept - mean) * counted[..., None]).square().sum((1, 2))

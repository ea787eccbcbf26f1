"""The quantiser of quantize.py over a whole pool, one layer at a time, in plain torch: slow, and true by definition."""

from __future__ import annotations

import numpy as np
import torch

from abkt.codec import quantize as q
from abkt.codec.backend import EXACT, Arrived, Coded, checksums
from abkt.codec.cells import BITS, Cells


class Oracle:
    def describe(self) -> str:
        return "oracle (torch, eager)"

    checksums = staticmethod(checksums)

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells, centres: np.ndarray) -> Coded:
        layers, _, heads, _ = cells.shape
        body = torch.zeros(cells.body_bytes, dtype=torch.uint8)
        errors = np.zeros((cells.passes + 1, *cells.shape))
        exact = np.zeros(cells.shape, dtype=bool)
        deviation = np.zeros((layers, 2, heads))
        table = torch.tensor(blocks, dtype=torch.long, device=data.device)
        for layer in range(layers):
            for kv in range(2):
                whole = data[table, layer, kv].transpose(0, 1).flatten(1, 2).cpu()  # [heads, coded tokens, head_dim]
                centre = _centre(centres, layer, kv)
                coded_exactly = torch.zeros(whole.shape[:2], dtype=torch.bool)
                for tile, tokens in enumerate(cells.tile_lengths):
                    span = slice(tile * cells.tile_tokens, tile * cells.tile_tokens + tokens)
                    bad = q.travels_exact(whole[:, span].float() - centre, data.dtype)
                    coded_exactly[:, span] = bad[:, None]
                    x = torch.where(bad[:, None, None], 0.0, whole[:, span])
                    coded = q.quantize(x.float() - centre, q.GROUP_DIM[kv], data.dtype)
                    left = q.squared_errors(x, coded, centre, cells.depth_bits).T.numpy()
                    errors[:, layer, kv, :, tile] = np.where(bad.numpy(), 0.0, left)
                    exact[layer, kv, :, tile] = bad.numpy()
                    packed = [q.pack_metadata(coded, q.GROUP_DIM[kv], data.dtype)]
                    packed += [q.pack_pass(coded.codes, index).flatten(1) for index in range(1, cells.passes + 1)]
                    for head in (h for h in range(heads) if not bad[h]):
                        cell = np.ravel_multi_index((layer, kv, head, tile), cells.shape)
                        for slot, offset in zip(packed, cells.offsets[:, cell].tolist(), strict=True):
                            body[offset : offset + slot.shape[1]] = slot[head]
                deviation[layer, kv] = _deviation(whole, ~coded_exactly).numpy()
        return Coded(body, errors.reshape(cells.passes + 1, -1), exact.reshape(-1), deviation)

    def expand(self, arrived: Arrived, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        dim, meta = cells.layout.model.head_dim, data.element_size() + 2
        buffer, offsets, present = torch.tensor(arrived.wire), arrived.offsets, arrived.present
        for cell in np.flatnonzero(present != EXACT).tolist():
            layer, kv, head, tile = cells.place(cell)
            tokens, passes = cells.tile_lengths[tile], int(present[cell])
            quarter = -(-tokens // 4)

            def slot(index: int, size: int, cell: int = cell) -> torch.Tensor:
                return buffer[offsets[index, cell] : offsets[index, cell] + size]

            low, step, mean = q.unpack_metadata(slot(0, (tokens if kv else dim) * meta), q.GROUP_DIM[kv], data.dtype)
            codes = torch.zeros(tokens, dim, dtype=torch.uint8)
            for index in range(1, passes + 1):
                rows = quarter * (2 if index == 3 else 1)
                codes |= q.unpack_pass(slot(index, rows * dim).view(rows, dim), index, tokens)
            x = q.reconstruct(q.Quantized(codes, low, step, mean), BITS[passes])
            x = (x + _centre(arrived.centres, layer, kv)[head]).to(data.dtype)
            held = torch.tensor(blocks[cells.tile_blocks(tile)], dtype=torch.long, device=data.device)
            data[held, layer, kv, head] = x.view(len(held), -1, dim).to(data.device)


def _centre(centres: np.ndarray, layer: int, kv: int) -> torch.Tensor:
    """[heads, 1, head_dim]; 0 for K."""
    return torch.tensor(centres[layer] * kv)[:, None]


def _deviation(x: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Squared deviation from channel means of the counted tokens of x [heads, tokens, head_dim]: [heads] float64."""
    kept = x.double().masked_fill(~counted[..., None], 0.0)
    mean = kept.sum(1, keepdim=True) / counted.sum(1).clamp_min(1)[:, None, None]
    return ((kept - mean) * counted[..., None]).square().sum((1, 2))

"""What a channel of V is around, so that only what varies is coded.

V is coded token by token over its channels, and a constant part of a channel, which no token shares, would take up the range: on the
probe's V the channels' means are two to three times their deviation, and taking them off leaves a sixth of the error at equal bits. K
needs none: its groups are channels, and their offset is free. One vector a (layer, head) serves the whole sequence; it is the mean of
the first tile, so no second look at the others is needed.
"""

from __future__ import annotations

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.fixed.quantize import LIMIT


def value_centres(data: torch.Tensor, blocks: list[int], cells: Cells) -> np.ndarray:
    """Channel means of V over the first tile, rounded to the pool's dtype: [layers, heads, channels] float32, a head or part of one each;
    0 where not finite, and without layers where there is no V or no cell."""
    layers, kinds, heads, _ = cells.shape
    if kinds == 1:
        return np.zeros((0, heads, cells.dim), dtype=np.float32)
    if not cells.count:
        return np.zeros((layers, heads, cells.dim), dtype=np.float32)
    return centres_of_first_tile(data, torch.tensor(blocks[cells.tile_blocks(0)], device=data.device), cells).cpu().numpy()


def centres_of_first_tile(data: torch.Tensor, table: torch.Tensor, cells: Cells) -> torch.Tensor:
    """The centres where the pool is, and without waiting for it. table: int64 there, at least the first tile of the coded blocks."""
    layers, _, heads, _ = cells.shape
    first = data[table[cells.tile_blocks(0)], :, 1]  # [blocks, layers, kv_heads, tokens, head_dim]
    tokens = first.shape[0] * first.shape[3]
    mean = (first.sum(3, dtype=torch.float64).sum(0) / tokens).to(data.dtype).float().reshape(layers, heads, cells.dim)
    return torch.where(mean.abs() < LIMIT[data.dtype], mean, 0.0)

"""The centres of V's channels, which are subtracted before V is coded.

V is coded in groups of one token over its channels. Without centres, the constant part of each channel would widen the range of every
group: on V of the probe model the channels' means are two to three times their deviation, and subtracting them leaves a sixth of the error
at equal bits. K needs no centres, because its groups are channels, and each has an offset anyway. One vector per (layer, head) serves the
whole sequence. It is the mean of the first tile, so that the other tiles need not be read twice.
"""

from __future__ import annotations

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.fixed.quantize import LIMIT


def value_centres(data: torch.Tensor, blocks: list[int], cells: Cells) -> np.ndarray:
    """Channel means of V over the first tile, rounded to the pool's dtype: [layers, heads or parts of heads, channels] float32. A mean
    that is not finite becomes 0. Without V (a latent) there are no layers; without cells all are 0."""
    layers, kinds, heads, _ = cells.shape
    if kinds == 1:
        return np.zeros((0, heads, cells.dim), dtype=np.float32)
    if not cells.count:
        return np.zeros((layers, heads, cells.dim), dtype=np.float32)
    return centres_of_first_tile(data, torch.tensor(blocks[cells.tile_blocks(0)], device=data.device), cells).cpu().numpy()


def centres_of_first_tile(data: torch.Tensor, table: torch.Tensor, cells: Cells) -> torch.Tensor:
    """The centres on the pool's device, without waiting for it. table: int64 on that device, at least the first tile of the coded
    blocks."""
    layers, _, heads, _ = cells.shape
    first = data[table[cells.tile_blocks(0)], :, 1]  # [blocks, layers, kv_heads, tokens, head_dim]
    tokens = first.shape[0] * first.shape[3]
    mean = (first.sum(3, dtype=torch.float64).sum(0) / tokens).to(data.dtype).float().reshape(layers, heads, cells.dim)
    return torch.where(mean.abs() < LIMIT[data.dtype], mean, 0.0)

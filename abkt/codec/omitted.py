"""Cells that need not travel: in a layer with a window, tokens before it are seen by no later token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from abkt.codec.cells import Cells
from abkt.codec.coder import VERBATIM, CodedSequence
from abkt.codec.fixed.oracle import deviation_of, tokens_of


def omitted(cells: Cells) -> np.ndarray:
    """[cells] bool: whether all tokens of a cell lie before the window of its layer at the end of the sequence."""
    model, shape = cells.layout.model, cells.shape
    ends = cells.sink_tokens + np.cumsum(cells.tile_lengths, dtype=np.int64)
    first = np.array([model.first_kept(layer, cells.tokens) for layer in range(shape[0])])
    return np.broadcast_to((ends <= first[:, None])[:, None, None], shape).reshape(-1)


def without_omitted(coded: CodedSequence, left_out: np.ndarray, data: torch.Tensor, blocks: list[int], cells: Cells) -> CodedSequence:
    """A coded sequence whose cells `left_out` do not travel, nor count in its distortion. data, blocks: as for Coder.encode.

    Their slots keep their place in a body of fixed sizes; where a coder's sizes follow from the values, they are taken out.
    """
    if not left_out.any():
        return coded
    deviation = coded.cells.deviation.copy()
    kept = ~left_out.reshape(cells.shape)[:, 0, 0]  # [layers, tiles]
    for layer in np.flatnonzero(~kept.all(1)).tolist():
        counted = torch.from_numpy(np.repeat(kept[layer], cells.tile_lengths))
        for kind in range(cells.shape[1]):
            held = data[torch.tensor(blocks, device=data.device), layer, kind]
            x = tokens_of(held, cells.dim)[:, : len(counted)].cpu()
            verbatim = (coded.cells.classes == VERBATIM).reshape(cells.shape)[layer, kind].repeat(cells.tile_lengths, 1)
            deviation[layer, kind] = deviation_of(x, counted & ~torch.from_numpy(verbatim)).numpy()
    sizes, body = coded.sizes, coded.cells.body
    if sizes is not cells.sizes:
        sizes = np.where(left_out, 0, sizes)
        body = body[torch.from_numpy(np.repeat((coded.sizes == sizes).reshape(-1), coded.sizes.reshape(-1)))]
    return replace(coded, cells=coded.cells.without(left_out, body, deviation), sizes=sizes)

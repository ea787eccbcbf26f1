"""How much each cell of KV will matter to decoding, predicted from the last window of queries of a prompt.

An error in V of token t moves the attention output o of a query by a_t times that error, where a_t is the token's attention weight. An
error in K of token t moves o by a_t (v_t - o) times the change of the logit. So to first order the squared error of the output is a sum
over tokens

    V   E[a_t^2] |dv_t|^2                  K   E[a_t^2 |v_t - o|^2] E[q_c^2] scale^2 dk_tc^2     (summed over the channels c)

with means E over the window, and sums over the query heads that share a KV head. The means are of the square of a, not squares of its mean.
The window stands for the tokens that will be decoded, because these attend to the same tokens as the end of the prompt (observed by SnapKV,
arXiv 2404.14469). The squares and the term of K are ours. A cell's weight is the mean over its tokens. Channels of K are weighted by their
spread, because a channel's coding error is proportional to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from abkt.codec.calibration import Calibration
from abkt.codec.cells import Cells
from abkt.kv.pool import Pool

FLOOR = 1e-6  # least weight of a cell, over the mean weight, so that every cell is sent in the end


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of one layer.

    tokens: [kinds, kv_heads, tokens] float32, what a unit of squared error in K or V of a token adds to the relative squared error of the
    layer's attention output. deviation: [kinds], squared deviation of K and V from their channel means.
    """

    tokens: torch.Tensor
    deviation: torch.Tensor


def weights_of(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, seen_tokens: int = 0) -> Weights:
    """The weights of one layer. query: [heads, window, head_dim], of the last tokens; key, value: [kv_heads, tokens, head_dim]; scale: the
    factor of the logits; seen_tokens: how many tokens a query of this layer sees, 0: all.

    Raises ValueError unless heads are a multiple of kv_heads and the window is no longer than the tokens.
    """
    heads, window, dim = query.shape
    kv_heads, tokens, _ = key.shape
    if heads % kv_heads or window > tokens or key.shape != value.shape or key.shape[2] != dim:
        raise ValueError(f"queries {tuple(query.shape)} do not fit keys {tuple(key.shape)} and values {tuple(value.shape)}")
    q, k, v = query.float().view(kv_heads, heads // kv_heads, window, dim), key.float()[:, None], value.float()[:, None]
    seen = torch.arange(tokens, device=key.device) <= torch.arange(tokens - window, tokens, device=key.device)[:, None]
    if seen_tokens:
        seen &= torch.arange(tokens, device=key.device) > torch.arange(tokens - window, tokens, device=key.device)[:, None] - seen_tokens
    attention = (q @ k.mT * scale).masked_fill(~seen, float("-inf")).softmax(-1)  # [kv_heads, group, window, tokens]
    out = attention @ v
    squared = attention.square()
    apart = v.square().sum(-1)[:, :, None] - 2 * out @ v.mT + out.square().sum(-1, keepdim=True)  # |v_t - o|^2
    spread = (k - k.mean(2, keepdim=True)).square().sum(2)  # [kv_heads, 1, dim]
    asked = (q.square().mean(2) * spread).sum(-1) / spread.sum(-1).clamp_min(1e-30) * scale**2  # [kv_heads, group]
    of_keys = ((squared * apart.clamp_min(0)).mean(2) * asked[..., None]).sum(1)
    of_values = squared.mean(2).sum(1)
    energy = out.square().sum(-1).mean(2).sum().clamp_min(1e-30)
    deviation = torch.stack([(x - x.mean(2, keepdim=True)).square().sum() for x in (k, v)])
    return Weights(torch.stack((of_keys, of_values)) / energy, deviation)


@dataclass(slots=True)
class Importance:
    """Keeps the last queries of a prompt while it is prefilled. The weights that follow from them are computed only when asked for.

    Parameters
    ----------
    window : how many of the last queries are kept.
    queries : for each layer its last queries, [heads, window, head_dim], and the scale of its logits.
    """

    window: int = 32
    queries: dict[int, tuple[torch.Tensor, float]] = field(default_factory=dict)

    def observe(self, layer: int, query: torch.Tensor, scale: float) -> None:
        """Keep the last queries of a layer. query: [heads, tokens, head_dim] of a whole prompt, or of one chunk of it; the last call
        counts."""
        self.queries[layer] = query[:, -self.window :], scale

    def tokens(self, pool: Pool, table: Sequence[int], tokens: int) -> torch.Tensor:
        """What `Codec.encode` takes as importance: of each token [layers, 2, kv_heads, tokens], float32; only ratios within a head count.

        A token that lies before the window of its layer has none. Raises ValueError if a layer was not observed, and for the latents of
        MLA.
        """
        model = pool.layout.model
        self._check_observed(model.layers, model.kv_kinds)
        found = torch.empty(model.layers, 2, model.kv_heads, tokens)
        for layer in range(model.layers):
            query, scale = self.queries[layer]
            keys, values = pool.read(table, layer, tokens)
            window = model.layer_windows[layer] if model.layer_windows else 0
            found[layer] = weights_of(query, keys, values, scale, window).tokens.clamp_min(1e-37)
            found[layer, ..., : model.first_kept(layer, tokens)] = 0
        return found

    def _check_observed(self, layers: int, kinds: int) -> None:
        missing = [layer for layer in range(layers) if layer not in self.queries]
        if missing or kinds != 2:
            raise ValueError(f"importance needs queries, K and V of every layer; missing are {missing or 'V of a latent'}")

    def weights(self, pool: Pool, table: Sequence[int], cells: Cells, calibration: Calibration | None = None) -> torch.Tensor:
        """The weights that `Codec.encode` takes.

        Parameters
        ----------
        pool, table : where the KV of the prompt lies.
        cells : how the prompt is divided (`Codec.cells`).
        calibration : how far importance is trusted, and how sensitive the model is to each head. Without it importance is trusted fully,
            and all heads count the same.

        Returns
        -------
        Weights of mean 1, float32 in the shape `cells.shape`. They are relative to the deviation of each (layer, kind), as the codec's
        distortion is.

        Raises
        ------
        ValueError : if a layer was not observed, for the latents of MLA, or if the calibration is of another model.
        """
        layers, kinds, heads, tiles = cells.shape
        self._check_observed(layers, kinds)
        if not tiles:
            return torch.ones(cells.shape)
        found = []
        for layer in range(layers):
            query, scale = self.queries[layer]
            keys, values = pool.read(table, layer, cells.tokens)
            windows = pool.layout.model.layer_windows
            of_layer = weights_of(query, keys, values, scale, windows[layer] if windows else 0)
            found.append(of_layer.tokens * of_layer.deviation[:, None, None])
        first, ends = cells.sink_tokens, np.cumsum(cells.tile_lengths)
        spans = zip(first + ends - cells.tile_lengths, first + ends)
        cell = torch.stack([torch.stack(found)[..., start:stop].mean(-1) for start, stop in spans], -1)
        relative = (cell / cell.mean().clamp_min(1e-30)).nan_to_num(1.0, 1.0, 1.0).clamp_min(FLOOR)
        if calibration is not None:
            calibration.check(cells.layout)
            relative = relative**calibration.gamma * torch.from_numpy(calibration.sensitivity).to(relative)[..., None]
        weights = relative.repeat_interleave(heads // cell.shape[2], 2)
        return weights / weights.mean()

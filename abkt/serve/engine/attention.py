"""Attention over the block pool, for any Hugging Face causal LM: new K and V are written into the pool, earlier ones are read from it.

transformers passes every layer's query, key and value (after RoPE) to the attention function named in the config. This one gets
the pool and the rows of the pass in the keyword argument `pass_`. The rest of the model is unchanged, and nothing is cached twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from abkt.codec.importance import Importance
from abkt.kv.pool import Pool

NAME = "abkt_pool"


@dataclass(slots=True)
class SequenceRow:
    """One sequence: its block table and how many of its tokens have KV in the pool."""

    table: Sequence[int]
    tokens: int
    index: torch.Tensor | slice = field(init=False)  # a slice if the blocks are adjacent, so that reading copies only once

    def __post_init__(self) -> None:
        first = self.table[0]
        adjacent = list(self.table) == list(range(first, first + len(self.table)))
        self.index = slice(first, first + len(self.table)) if adjacent else torch.tensor(self.table)


@dataclass(slots=True)
class ForwardPass:
    """One forward pass: a whole prompt (one row without tokens), more tokens of one row, or one decode iteration (a token for each row).

    importance: observes the queries of each layer while a prompt is computed.
    """

    pool: Pool
    rows: Sequence[SequenceRow]
    importance: Importance | None = None
    blocks: torch.Tensor = field(init=False)
    offsets: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        size = self.pool.layout.block_tokens
        self.blocks = torch.tensor([row.table[row.tokens // size] for row in self.rows])
        self.offsets = torch.tensor([row.tokens % size for row in self.rows])

    def prefill(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """A whole prompt. query [1, heads, n, dim], key, value [1, kv_heads, n, dim] -> [1, heads, n, dim]."""
        key, value = self._rounded(key), self._rounded(value)
        self.pool.write(self.rows[0].table, layer, 0, key[0], value[0])
        key, value = key.to(query.dtype), value.to(query.dtype)
        if self.importance is not None:
            self.importance.observe(layer, query[0], scale)
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)

    def extend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """n more tokens of one row. Each query of [1, heads, n, dim] attends to the pool and to the new tokens up to itself."""
        row, n = self.rows[0], query.shape[2]
        self.pool.write(row.table, layer, row.tokens, self._rounded(key)[0], self._rounded(value)[0])
        keys, values = (held.to(query.dtype) for held in self.pool.read(row.table, layer, row.tokens + n))
        last = torch.arange(row.tokens, row.tokens + n, device=query.device)[:, None]
        seen = torch.arange(row.tokens + n, device=query.device) <= last
        return scaled_dot_product_attention(query, keys[None], values[None], attn_mask=seen, scale=scale, enable_gqa=True)

    def decode(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """One token of each row. query [batch, heads, 1, dim], key, value [batch, kv_heads, 1, dim] -> [batch, heads, 1, dim]."""
        data = self.pool.data
        data[self.blocks, layer, 0, :, self.offsets] = self._rounded(key)[:, :, 0]
        data[self.blocks, layer, 1, :, self.offsets] = self._rounded(value)[:, :, 0]
        batch, heads, _, dim = query.shape
        kv_heads = key.shape[1]
        # The query heads of a KV head become query positions: keys need not be repeated, and the fused kernel runs without a mask.
        grouped = query.view(batch, kv_heads, heads // kv_heads, dim)
        out = torch.empty_like(grouped)
        for i, row in enumerate(self.rows):
            seen = data[row.index, layer].permute(1, 2, 0, 3, 4).reshape(2, 1, kv_heads, -1, dim)[..., : row.tokens + 1, :].to(query.dtype)
            out[i] = scaled_dot_product_attention(grouped[i : i + 1], seen[0], seen[1], scale=scale)[0]
        return out.view(batch, heads, 1, dim)

    def _rounded(self, new: torch.Tensor) -> torch.Tensor:
        """New K or V in the pool's dtype. Attention reads these too, so that a prompt and its KV from a pool give the same answer."""
        return new.to(self.pool.dtype)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: Any = None,
    dropout: float = 0.0,
    pass_: ForwardPass | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function with transformers' interface; returns ([batch, tokens, heads, dim], None for the attention weights)."""
    if pass_ is None:
        raise ValueError("this model's attention runs over a block pool; call the model through abkt.serve.engine.engine.Engine")
    run = pass_.prefill if not pass_.rows[0].tokens else pass_.extend if query.shape[2] > 1 else pass_.decode
    return run(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


def register() -> str:
    """Register the attention with transformers; returns its name for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # ForwardPass applies the causal mask
    return NAME

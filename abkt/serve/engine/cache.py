"""The block pool as a transformers Cache: any unchanged Hugging Face causal LM with grouped or multi-head attention can generate with it.

    cache = PoolCache(pool, [table])            # one table for each row of the batch
    model.generate(input_ids, past_key_values=cache)

KV that was in the pool at the start is read and never written again. So KV received over a network, lossy or not, is not coded twice.

PoolCache is general: it keeps the model's own attention and masks (windows, soft caps, padding). Workers use the faster
abkt.serve.engine.attention, which replaces the model's attention. It does not copy KV for each layer and token, and one batch may hold rows
of different lengths. Both write the same KV. Prompt lookup and assistant models work: tokens that they guess wrong are taken back.
Not supported: beam search, which would move KV in the pool; and prompt lookup and assistant models over received KV, because transformers
(5.23) then computes the whole prompt a second time behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from abkt.kv.pool import Pool


class PoolLayer(CacheLayerMixin):
    """One layer of all rows: keys and values [rows, kv_heads, tokens, head_dim], copied from the pool at each step."""

    is_sliding = False
    is_croppable = True

    def __init__(self, pool: Pool, tables: Sequence[Sequence[int]], layer: int, tokens: int) -> None:
        super().__init__()
        self._pool, self._tables, self._layer, self._tokens = pool, tables, layer, tokens
        self._received = tokens
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None: ...

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new keys and values, and return all of them. Raises ValueError, one line, if the blocks or shapes do not fit."""
        if key_states.shape[0] != len(self._tables):
            raise ValueError(
                f"a batch of {key_states.shape[0]} rows, but the cache has {len(self._tables)} tables; one for each row is needed"
            )
        for table, key, value in zip(self._tables, key_states, value_states, strict=True):
            self._pool.write(table, self._layer, self._tokens, key, value)
        self._tokens += key_states.shape[2]
        rows = [self._pool.read(table, self._layer, self._tokens) for table in self._tables]
        return torch.stack([keys for keys, _ in rows]), torch.stack([values for _, values in rows])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._tokens + query_length, 0

    def get_seq_length(self) -> int:
        return self._tokens

    def get_max_length(self) -> int:
        return min(len(table) for table in self._tables) * self._pool.layout.block_tokens

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens. tokens_to_remove: their number, negated as transformers does; later ones are written over them."""
        if self._received:
            raise ValueError(
                f"this PoolCache began with the KV of {self._received} tokens; prompt lookup and assistant models need an empty one, "
                "since transformers would compute the prompt again behind it"
            )
        self._tokens -= abs(tokens_to_remove)

    def offload(self) -> None:
        raise ValueError("a PoolCache does not offload; its KV stays in the block pool")

    def reset(self) -> None:
        raise ValueError("a PoolCache is append-only; make a new one over the same tables")

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise ValueError("a PoolCache is append-only, so it has no beams; give num_beams=1")


class PoolCache(Cache):
    """The KV of a batch, in blocks of a pool.

    Parameters
    ----------
    pool : a pool with the model's shape.
    tables : the blocks of each row, enough for all its tokens at the end.
    tokens : number of tokens per row whose KV is already in the pool, such as a received prompt; generation continues after them.

    Raises
    ------
    ValueError : one line, if the pool's model has one latent instead of K and V, a table does not fit the pool, or two rows share a block.
    """

    def __init__(self, pool: Pool, tables: Sequence[Sequence[int]], tokens: int = 0) -> None:
        model = pool.layout.model
        if model.kv_kinds != 2:
            raise ValueError(f"model {model.name} keeps one latent; a PoolCache holds keys and values")
        if not tables:
            raise ValueError("a PoolCache needs a table for each row of the batch")
        held = [block for table in tables for block in pool.check_table(table, tokens)]
        if len(set(held)) < len(held):
            raise ValueError("two rows share a block; each needs its own")
        super().__init__(layers=[PoolLayer(pool, tables, layer, tokens) for layer in range(model.layers)])

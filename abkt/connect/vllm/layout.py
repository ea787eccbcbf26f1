"""How a backend of vLLM arranges KV inside its blocks, and copies between these blocks and a pool.

A layer's cache is a tensor of logical shape [blocks, kv_heads, block_tokens, content] with any strides, so NHD and HND, and layers that
share a block (BLHNC), need no rule of their own. What differs is the content of a block and head:

split   K in the first half of the last dimension, V in the second: FlashAttention, FlashInfer, Triton, FlexAttention.
cpu     K and V after one another, K transposed to [head_dim, tokens]: the CPU backend's `vec` and `vec16` instruction sets.
latent  one latent per token, [blocks, tokens, width]: MLA.

Source: the cache writes (do_kv_cache_update) of vLLM 0.32's backends. selfcheck.py compares with them at start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

CODEC_TOKENS = 16  # tokens of a pool's block: fewer travel verbatim at both edges of a prompt than in vLLM's larger blocks
Arrangement = Literal["split", "cpu", "latent"]


@dataclass(frozen=True, slots=True)
class PagedKV:
    """The KV caches of all layers of a worker.

    Parameters
    ----------
    layers : one tensor for each layer, in the order of the layers.
    arrangement : see above.
    name : the model's name.

    Raises
    ------
    ValueError : one line, for caches of unequal or unexpected shapes or of a dtype that cannot be coded.
    """

    layers: tuple[torch.Tensor, ...]
    arrangement: Arrangement
    name: str = "model"

    def __post_init__(self) -> None:
        shapes = {(tuple(layer.shape), layer.dtype) for layer in self.layers}
        if len(shapes) != 1:
            raise ValueError(f"KV caches have {len(shapes)} different shapes or dtypes; AbktConnector needs equal ones for all layers")
        rank = self.layers[0].dim()
        if rank != (3 if self.arrangement == "latent" else 4) or (self.arrangement != "latent" and self.layers[0].shape[3] % 2):
            raise ValueError(f"KV caches of shape {tuple(self.layers[0].shape)} are not the {self.arrangement} layout")
        if self.block_tokens % CODEC_TOKENS:
            raise ValueError(f"blocks of {self.block_tokens} tokens; AbktConnector needs a multiple of {CODEC_TOKENS}: give --block-size")

    @property
    def block_tokens(self) -> int:
        return self.layers[0].shape[-2]

    @property
    def blocks(self) -> int:
        return self.layers[0].shape[0]

    @property
    def spec(self) -> ModelSpec:
        layer, kinds = self.layers[0], 1 if self.arrangement == "latent" else 2
        heads = 1 if kinds == 1 else layer.shape[1]
        dtype = str(layer.dtype).removeprefix("torch.")
        return ModelSpec(self.name, len(self.layers), heads, layer.shape[-1] // kinds, dtype, kv_kinds=kinds)

    def pool(self, tokens: int) -> Pool:
        """A new pool for the KV of `tokens` tokens."""
        return Pool(KVLayout(self.spec, -(-tokens // CODEC_TOKENS), CODEC_TOKENS), self.layers[0].device)

    def gather(self, block_ids: Sequence[int], tokens: int) -> Pool:
        """A copy of the KV of the first `tokens` tokens in these blocks. Places after them are 0."""
        pool = self.pool(tokens)
        index = self._index(block_ids, tokens)
        for number, layer in enumerate(self.layers):
            for kind, values in enumerate(self._kinds(layer, index)):
                pool.data[:, number, kind] = self._tiled(values)[: len(pool.data)]
        if over := len(pool.data) * CODEC_TOKENS - tokens:
            pool.data[-1, :, :, :, CODEC_TOKENS - over :] = 0
        return pool

    def scatter(self, pool: Pool, block_ids: Sequence[int], tokens: int) -> None:
        """Write the first `tokens` tokens of a pool into these blocks. No other token of them changes."""
        index, size = self._index(block_ids, tokens), self.block_tokens
        whole, rest = divmod(tokens, size)
        for number, layer in enumerate(self.layers):
            for kind in range(pool.data.shape[2]):
                values = self._untiled(pool.data[:, number, kind], len(index))
                if whole:
                    self._write(layer, index[:whole], kind, values[:whole])
                if rest:
                    mixed = self._kinds(layer, index[whole:])[kind].clone()
                    mixed[:, :, :rest] = values[whole:, :, :rest]
                    self._write(layer, index[whole:], kind, mixed)

    def _index(self, block_ids: Sequence[int], tokens: int) -> torch.Tensor:
        needed = -(-tokens // self.block_tokens)
        if tokens < 1 or len(block_ids) < needed or not all(0 <= block < self.blocks for block in block_ids[:needed]):
            raise ValueError(f"{len(block_ids)} blocks cannot hold {tokens} tokens, or are outside of the {self.blocks} of the cache")
        return torch.tensor(block_ids[:needed], device=self.layers[0].device)

    def _kinds(self, layer: torch.Tensor, index: torch.Tensor) -> list[torch.Tensor]:
        """K and V, or the latent, of some blocks: [blocks, heads, block_tokens, head_dim] each."""
        held = layer[index]
        if self.arrangement == "latent":
            return [held[:, None]]
        if self.arrangement == "split":
            return list(held.chunk(2, -1))
        blocks, heads, tokens, content = held.shape
        keys, values = held.reshape(blocks, heads, 2, tokens * content // 2).unbind(2)
        return [keys.reshape(blocks, heads, content // 2, tokens).transpose(2, 3), values.reshape(blocks, heads, tokens, content // 2)]

    def _write(self, layer: torch.Tensor, index: torch.Tensor, kind: int, values: torch.Tensor) -> None:
        """The inverse of _kinds, for one kind."""
        if self.arrangement == "latent":
            layer[index] = values[:, 0]
        elif self.arrangement == "split":
            layer.chunk(2, -1)[kind][index] = values
        else:
            blocks, heads, tokens, content = layer.shape
            parts = layer.view(blocks, heads, 2, tokens * content // 2)
            parts[index, :, kind] = (values.transpose(2, 3) if kind == 0 else values).reshape(len(index), heads, -1)

    def _tiled(self, values: torch.Tensor) -> torch.Tensor:
        """[blocks, heads, block_tokens, dim] as [pool blocks, heads, CODEC_TOKENS, dim]."""
        blocks, heads, tokens, dim = values.shape
        parts = values.reshape(blocks, heads, tokens // CODEC_TOKENS, CODEC_TOKENS, dim)
        return parts.transpose(1, 2).reshape(-1, heads, CODEC_TOKENS, dim)

    def _untiled(self, values: torch.Tensor, blocks: int) -> torch.Tensor:
        """The inverse of _tiled; what a last block lacks is 0."""
        per_block = self.block_tokens // CODEC_TOKENS
        if missing := blocks * per_block - len(values):
            values = torch.cat((values, values.new_zeros(missing, *values.shape[1:])))
        _, heads, tokens, dim = values.shape
        return values.view(blocks, per_block, heads, tokens, dim).transpose(1, 2).reshape(blocks, heads, self.block_tokens, dim)

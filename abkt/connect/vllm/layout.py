"""How a backend of vLLM arranges KV inside its blocks, and copies between these blocks and a pool.

A layer's cache is a tensor of logical shape [blocks, kv_heads, block_tokens, content] with any strides, so NHD and HND, and layers that
share a block (BLHNC), need no rule of their own. What differs is the content of a block and head:

split   K in the first half of the last dimension, V in the second: FlashAttention, FlashInfer, Triton, FlexAttention.
cpu     K and V after one another, K transposed to [head_dim, tokens]: the CPU backend's `vec` and `vec16` instruction sets.
latent  one latent per token, [blocks, tokens, width]: MLA.

Source: the cache writes (do_kv_cache_update) of vLLM 0.32's backends. selfcheck.py compares with them at start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

CODEC_TOKENS = 16  # tokens of a pool's block: fewer travel verbatim at both edges of a prompt than in vLLM's larger blocks
MOST_RUNS = 16  # runs of adjacent blocks that are copied one by one; more are copied by the blocks' numbers
Arrangement = Literal["split", "cpu", "latent"]
Rows = slice | tuple[slice, slice] | torch.Tensor


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

    def layout(self, tokens: int) -> KVLayout:
        """The layout of a pool for the KV of `tokens` tokens."""
        return KVLayout(self.spec, -(-tokens // CODEC_TOKENS), CODEC_TOKENS)

    def pool(self, tokens: int) -> Pool:
        """A new pool for the KV of `tokens` tokens."""
        return Pool(self.layout(tokens), self.layers[0].device)

    def gather(self, block_ids: Sequence[int], tokens: int) -> Pool:
        """A copy of the KV of the first `tokens` tokens in these blocks. Places after them are 0."""
        pool = self.pool(tokens)
        for held, rows, sent in self._parts(pool.data, block_ids, tokens):
            sent.copy_(held[rows])
        return pool

    def scatter(self, data: torch.Tensor, block_ids: Sequence[int], tokens: int) -> None:
        """Write the first `tokens` tokens of a pool's data into these blocks. No other token of them changes."""
        for held, rows, sent in self._parts(data, block_ids, tokens):
            held[rows] = sent

    def _parts(self, data: torch.Tensor, block_ids: Sequence[int], tokens: int) -> Iterator[tuple[torch.Tensor, Rows, torch.Tensor]]:
        """(tensor, rows of it, the part of a pool's data that belongs there): together they are all the tokens."""
        size = self.block_tokens
        needed = -(-tokens // size)
        if tokens < 1 or len(block_ids) < needed or not all(0 <= block < self.blocks for block in block_ids[:needed]):
            raise ValueError(f"{len(block_ids)} blocks cannot hold {tokens} tokens, or are outside of the {self.blocks} of the cache")
        whole, rest = divmod(tokens, size)
        per_block, places = size // CODEC_TOKENS, self._places(block_ids[:whole])
        for number, layer in enumerate(self.layers):
            for kind, held in enumerate(self._kinds(layer)):
                tiles = held.unflatten(2, (per_block, CODEC_TOKENS)).transpose(1, 2)  # as a pool: tokens of a tile after the heads
                sent = data[:, number, kind]
                for rows, first, count in places:
                    yield tiles, rows, sent[first * per_block : (first + count) * per_block].unflatten(0, (count, per_block))
                for tile in range(-(-rest // CODEC_TOKENS)):
                    at = slice(None), slice(min(CODEC_TOKENS, rest - tile * CODEC_TOKENS))
                    yield tiles[block_ids[whole], tile], at, sent[whole * per_block + tile][at]

    def _places(self, block_ids: Sequence[int]) -> list[tuple[Rows, int, int]]:
        """(rows, first, count) of whole blocks: runs of adjacent ones as slices, which are copied at once, or all of them by number."""
        firsts = [at for at in range(len(block_ids)) if at == 0 or block_ids[at] != block_ids[at - 1] + 1]
        if len(firsts) > MOST_RUNS:
            return [(torch.tensor(block_ids, device=self.layers[0].device), 0, len(block_ids))]
        return [
            (slice(block_ids[first], block_ids[first] + stop - first), first, stop - first)
            for first, stop in zip(firsts, [*firsts[1:], len(block_ids)])
        ]

    def _kinds(self, layer: torch.Tensor) -> list[torch.Tensor]:
        """Views of K and V, or of the latent: [blocks, heads, block_tokens, head_dim] each."""
        if self.arrangement == "latent":
            return [layer[:, None]]
        if self.arrangement == "split":
            return list(layer.chunk(2, -1))
        blocks, heads, tokens, content = layer.shape
        keys, values = layer.view(blocks, heads, 2, tokens * content // 2).unbind(2)
        return [keys.unflatten(2, (content // 2, tokens)).transpose(2, 3), values.unflatten(2, (tokens, content // 2))]

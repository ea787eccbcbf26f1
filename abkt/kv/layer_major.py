"""A pool in the layout [layer, kind, block, kv_head, token, head_dim], which block-contiguous pools are compared to.

Here a run of adjacent blocks is `layers * kinds` pieces of memory, so a transfer of it takes as many calls. Source: FlowKV (arXiv
2504.03775), section 3, on the layout of vLLM's cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from abkt.kv.pool import check_kinds, check_table, merged
from abkt.spec import KVLayout


class LayerMajorPool:
    def __init__(self, layout: KVLayout, device: str | torch.device = "cpu") -> None:
        blocks, layers, kinds, heads, tokens, dim = layout.shape
        self.layout = layout
        self.dtype: torch.dtype = getattr(torch, layout.model.dtype)
        self.data = torch.zeros(layers, kinds, blocks, heads, tokens, dim, dtype=self.dtype, device=device)

    def write(self, table: Sequence[int], layer: int, start: int, *kinds: torch.Tensor) -> None:
        """As Pool.write."""
        size = self.layout.block_tokens
        tokens = check_kinds(self.layout, self.dtype, layer, start, kinds)
        positions = torch.arange(start, start + tokens, device=self.data.device)
        blocks = torch.tensor(check_table(self.layout, table, start + tokens), device=self.data.device)
        for kind, values in enumerate(kinds):
            self.data[layer, kind, blocks[positions // size], :, positions % size] = values.transpose(0, 1)

    def read(self, table: Sequence[int], layer: int, tokens: int) -> tuple[torch.Tensor, ...]:
        """As Pool.read."""
        blocks = torch.tensor(check_table(self.layout, table, tokens)[: self.layout.blocks_for(tokens)], device=self.data.device)
        held = self.data[layer][:, blocks].transpose(1, 2)  # [kinds, kv_heads, blocks, tokens, head_dim]
        return tuple(kind.flatten(1, 2)[:, :tokens] for kind in held)

    def pieces(self, table: Sequence[int]) -> list[tuple[int, int]]:
        """The memory that holds the blocks of a table: (first byte, bytes), layer by layer and kind by kind, adjacent ones merged."""
        model = self.layout.model
        size = self.layout.block_bytes // (model.layers * model.kv_kinds)
        planes = range(model.layers * model.kv_kinds)
        return merged(((plane * self.layout.blocks + block) * size, size) for plane in planes for block in table)

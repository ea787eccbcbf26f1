"""A block-contiguous pool of KV: [block, layer, K|V, kv_head, token, head_dim], so a run of adjacent blocks is one piece of memory.

Source: FlowKV (arXiv 2504.03775), section 3. Not here yet: layer groups, one latent in place of K|V, the layer-major baseline.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from abkt.spec import KVLayout


class Pool:
    """KV of many sequences. data: a tensor of layout.shape in layout.model.dtype; a sequence is a table of block numbers."""

    def __init__(self, layout: KVLayout, device: str | torch.device = "cpu") -> None:
        self.layout = layout
        self.dtype: torch.dtype = getattr(torch, layout.model.dtype)
        self.data = torch.zeros(layout.shape, dtype=self.dtype, device=device)
        self._bytes = self.data.view(torch.uint8).reshape(-1).numpy().data if self.data.device.type == "cpu" else None

    def write(self, table: Sequence[int], layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values [kv_heads, tokens, head_dim] at token positions start .. start + tokens of the sequence.

        Raises ValueError, with both shapes, if they do not fit the layout, and if the table is too short or holds a foreign block.
        """
        model, size = self.layout.model, self.layout.block_tokens
        tokens = keys.shape[1] if keys.dim() == 3 else 0
        expected = (model.kv_heads, tokens, model.head_dim)
        if tuple(keys.shape) != expected or tuple(values.shape) != expected:
            raise ValueError(
                f"keys {tuple(keys.shape)} and values {tuple(values.shape)} do not fit the pool; "
                f"both must be (kv_heads, tokens, head_dim) = ({model.kv_heads}, tokens, {model.head_dim})"
            )
        if keys.dtype != self.dtype or values.dtype != self.dtype:
            raise ValueError(f"keys {tuple(keys.shape)} are {keys.dtype}, values {values.dtype}; pool {self.layout.shape} is {self.dtype}")
        if not 0 <= layer < model.layers or start < 0:
            raise ValueError(f"layer {layer}, start {start}: the pool has layers 0 to {model.layers - 1}, and a start is at least 0")
        if tokens == 0:
            return
        first, last = start // size, (start + tokens - 1) // size
        used = self.check_table(table, start + tokens)[first : last + 1]
        if first == last:
            begin = start - first * size
            block = self.data[used[0], layer]
            block[0, :, begin : begin + tokens] = keys
            block[1, :, begin : begin + tokens] = values
            return
        positions = torch.arange(start, start + tokens, device=self.data.device)
        block = torch.tensor(used, device=self.data.device)[positions // size - first]
        slot = positions % size
        self.data[block, layer, 0, :, slot] = keys.transpose(0, 1)
        self.data[block, layer, 1, :, slot] = values.transpose(0, 1)

    def read(self, table: Sequence[int], layer: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first `tokens` tokens, [kv_heads, tokens, head_dim] each, copied. Raises ValueError as `write` does."""
        model, count = self.layout.model, self.layout.blocks_for(tokens)
        blocks = torch.tensor(self.check_table(table, tokens)[:count], dtype=torch.long, device=self.data.device)
        both = self.data[blocks, layer].permute(1, 2, 0, 3, 4).reshape(2, model.kv_heads, -1, model.head_dim)
        return both[0, :, :tokens], both[1, :, :tokens]

    def run_bytes(self, first_block: int, blocks: int) -> memoryview:
        """The memory of adjacent blocks: writable, not copied. Raises ValueError outside the pool, or where memory is not the CPU's."""
        if self._bytes is None:
            raise ValueError(f"pool {self.layout.shape} is on {self.data.device}; only a CPU pool has bytes to show")
        if first_block < 0 or blocks < 0 or first_block + blocks > self.layout.blocks:
            raise ValueError(f"blocks {first_block} to {first_block + blocks} are not all in a pool of {self.layout.blocks}")
        size = self.layout.block_bytes
        return self._bytes[first_block * size : (first_block + blocks) * size]

    def check_table(self, table: Sequence[int], tokens: int) -> list[int]:
        """The table as a list. Raises ValueError unless it holds `tokens` tokens in distinct blocks of this pool."""
        blocks, needed = list(table), self.layout.blocks_for(tokens)
        if len(blocks) < needed:
            size = self.layout.block_tokens
            raise ValueError(f"a table of {len(blocks)} blocks of {size} tokens holds no {tokens} tokens; {needed} are needed")
        if blocks and not 0 <= min(blocks) <= max(blocks) < self.layout.blocks:
            raise ValueError(f"table names block {max(blocks, key=abs)}; the pool has blocks 0 to {self.layout.blocks - 1}")
        if len(set(blocks)) != len(blocks):
            raise ValueError("table names a block twice; each position of a sequence needs its own block")
        return blocks

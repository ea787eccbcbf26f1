"""A block-contiguous pool of KV: [block, layer, kind, kv_head, token, head_dim], so a run of adjacent blocks is one piece of memory.

Kinds are K and V, or the one latent of MLA. Source: FlowKV (arXiv 2504.03775), section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from abkt.spec import KVLayout


class Pool:
    """Holds the KV of many sequences in blocks of tokens. A sequence is a *table*: the numbers of its blocks, in the order of its tokens.

    Parameters
    ----------
    layout : the model, the number of blocks, and the number of tokens in a block.
    device : where the memory is.

    Attributes
    ----------
    data : the KV, a tensor of layout.shape = [blocks, layers, kinds, kv_heads, block_tokens, head_dim] in the model's dtype.

    Source: FlowKV (arXiv 2504.03775), section 3.
    """

    def __init__(self, layout: KVLayout, device: str | torch.device = "cpu") -> None:
        self.layout = layout
        self.dtype: torch.dtype = getattr(torch, layout.model.dtype)
        self.data = torch.zeros(layout.shape, dtype=self.dtype, device=device)
        self._bytes = self.data.view(torch.uint8).reshape(-1).numpy().data if self.data.device.type == "cpu" else None

    def write(self, table: Sequence[int], layer: int, start: int, *kinds: torch.Tensor) -> None:
        """Write KV of one layer at positions start to start + tokens of a sequence.

        Parameters
        ----------
        table : blocks of the sequence.
        layer, start : the layer, and the position of the first token that is written.
        kinds : keys and values, or one latent, [kv_heads, tokens, head_dim] each, in the pool's dtype.

        Raises
        ------
        ValueError : if shapes do not fit the layout (the message has all of them), if the table is too short, or if it has a block that the
            pool does not have.
        """
        size = self.layout.block_tokens
        tokens = check_kinds(self.layout, self.dtype, layer, start, kinds)
        if tokens == 0:
            return
        first, last = start // size, (start + tokens - 1) // size
        used = self.check_table(table, start + tokens)[first : last + 1]
        if first == last:
            begin = start - first * size
            for kind, values in enumerate(kinds):
                self.data[used[0], layer, kind, :, begin : begin + tokens] = values
            return
        positions = torch.arange(start, start + tokens, device=self.data.device)
        block = torch.tensor(used, device=self.data.device)[positions // size - first]
        for kind, values in enumerate(kinds):
            self.data[block, layer, kind, :, positions % size] = values.transpose(0, 1)

    def read(self, table: Sequence[int], layer: int, tokens: int) -> tuple[torch.Tensor, ...]:
        """Every kind of the first `tokens` tokens, [kv_heads, tokens, head_dim] each, copied. Raises ValueError as `write` does."""
        count = self.layout.blocks_for(tokens)
        blocks = torch.tensor(self.check_table(table, tokens)[:count], dtype=torch.long, device=self.data.device)
        held = self.data[blocks, layer].permute(1, 2, 0, 3, 4)  # [kinds, kv_heads, blocks, tokens, head_dim]
        return tuple(kind.flatten(1, 2)[:, :tokens] for kind in held)

    def pieces(self, table: Sequence[int]) -> list[tuple[int, int]]:
        """The pieces of memory that hold the blocks of a table, (first byte, bytes) in table order; adjacent blocks are one piece."""
        size = self.layout.block_bytes
        return merged((block * size, size) for block in table)

    def run_bytes(self, first_block: int, blocks: int) -> memoryview:
        """The memory of adjacent blocks: writable, not copied. Raises ValueError for blocks outside the pool, or a pool that is not on the
        CPU."""
        if self._bytes is None:
            raise ValueError(f"pool {self.layout.shape} is on {self.data.device}; only a pool on the CPU has bytes to show")
        if first_block < 0 or blocks < 0 or first_block + blocks > self.layout.blocks:
            raise ValueError(f"blocks {first_block} to {first_block + blocks} are not all in a pool of {self.layout.blocks}")
        size = self.layout.block_bytes
        return self._bytes[first_block * size : (first_block + blocks) * size]

    def check_table(self, table: Sequence[int], tokens: int) -> list[int]:
        """The table as a list. Raises ValueError unless it holds `tokens` tokens in distinct blocks of this pool."""
        return check_table(self.layout, table, tokens)


def check_kinds(layout: KVLayout, dtype: torch.dtype, layer: int, start: int, kinds: Sequence[torch.Tensor]) -> int:
    """How many tokens `kinds` have. Raises ValueError, with all shapes, if they do not fit the layout."""
    model = layout.model
    shapes = [tuple(kind.shape) for kind in kinds]
    tokens = shapes[0][1] if shapes and len(shapes[0]) == 3 else 0
    if shapes != [(model.kv_heads, tokens, model.head_dim)] * model.kv_kinds:
        names = "keys and values" if model.kv_kinds == 2 else "one latent"
        raise ValueError(
            f"{', '.join(map(str, shapes)) or 'nothing'} does not fit the pool; "
            f"{names} are needed, (kv_heads, tokens, head_dim) = ({model.kv_heads}, tokens, {model.head_dim}) each"
        )
    wrong = next((kind for kind in kinds if kind.dtype != dtype), None)
    if wrong is not None:
        raise ValueError(f"values {tuple(wrong.shape)} are {wrong.dtype}; pool {layout.shape} is {dtype}")
    if not 0 <= layer < model.layers or start < 0:
        raise ValueError(f"layer {layer}, start {start}: the pool has layers 0 to {model.layers - 1}, and a start is at least 0")
    return tokens


def check_table(layout: KVLayout, table: Sequence[int], tokens: int) -> list[int]:
    """The table as a list. Raises ValueError unless it holds `tokens` tokens in distinct blocks of a pool of this layout."""
    blocks, needed = list(table), layout.blocks_for(tokens)
    if len(blocks) < needed:
        size = layout.block_tokens
        raise ValueError(f"a table of {len(blocks)} blocks of {size} tokens cannot hold {tokens} tokens; {needed} blocks are needed")
    if blocks and not 0 <= min(blocks) <= max(blocks) < layout.blocks:
        raise ValueError(f"table names block {max(blocks, key=abs)}; the pool has blocks 0 to {layout.blocks - 1}")
    if len(set(blocks)) != len(blocks):
        raise ValueError("table names a block twice; each position of a sequence needs its own block")
    return blocks


def merged(pieces: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pieces (first byte, bytes) in their order; a piece that begins where the previous one ends is joined to it."""
    joined: list[tuple[int, int]] = []
    for start, size in pieces:
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + size)
        else:
            joined.append((start, size))
    return joined

"""How a sequence is divided: verbatim edges, tiles of tokens, cells, and the slot of every pass of every cell.

The first block (attention sinks) and the newest 1 to block_tokens tokens (those that do not fill a block, or the last full block) travel
verbatim. The tokens between them fill whole blocks; `tile_tokens` of them make a tile, and the last tile may be shorter. A cell is
(layer, kind, head, tile), numbered in that order; kinds are K and V, or the one latent of MLA. A head of more than 128 channels is coded
as parts of equal width, each as if it were a head: 256 as two of 128, a latent of 576 as six of 96. With the fixed coder the passes of a
cell are

  0     metadata   per group: offset (the pool's dtype), and 16 bits that hold step and mean; a group is a channel of K, a token of V
  1..4  bits 7, 6, 5, 4 of the codes     eight codes a byte
  5, 6  bits 3-2, 1-0                    four codes a byte

and each pass of each cell has a slot of fixed size, a multiple of 16 bytes. Slots are stored pass after pass, cell after cell; the wire
sends them in another order, which is a list of slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from abkt.spec import DTYPE_BYTES, KVLayout

WIDTHS = (1, 1, 1, 1, 2, 2)  # bits of each refinement pass
BITS = (0, 1, 2, 3, 4, 6, 8)  # bits per value after each pass, metadata first
PASSES = {bits: index for index, bits in enumerate(BITS) if index}  # depth in bits -> refinement passes
ALIGN = 16
MAX_TILE_TOKENS = 32_768  # sums of a group's squared codes fit 32 bits
MAX_PART = 128  # channels: what a program of the Triton kernels holds without spilling
LANES = 16  # the compiled backend codes channels in multiples of this


def part_of(head_dim: int) -> int:
    """How many channels are coded together: a whole head of at most MAX_PART channels, or the widest part of a larger head that has at most
    MAX_PART channels, divides the head evenly and is a multiple of LANES. If there is no such part, the whole head."""
    parts = (part for part in range(MAX_PART, 0, -LANES) if head_dim % part == 0)
    return head_dim if head_dim <= MAX_PART else next(parts, head_dim)


def aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of a sequence of `tokens` tokens, coded to a depth of `depth_bits` bits per value.

    shape: [layers, kinds, kv_heads * parts, tiles]. dim: number of channels of a part. sizes, offsets: [passes + 1, cells] int64, the bytes
    of each slot of the fixed coder, and its place in the body. values: [cells] int64, how many KV values each cell has. body_bytes: the
    bytes of all slots together. edges: whether the tokens at both edges travel verbatim; without, all tokens are coded, and the last block
    may be part full (the klt coder). Raises ValueError if tile_tokens is not a whole number of blocks, or the depth is not one of PASSES.
    """

    layout: KVLayout
    tokens: int
    tile_tokens: int
    depth_bits: int
    edges: bool = True
    shape: tuple[int, int, int, int] = field(init=False)
    dim: int = field(init=False)
    sizes: np.ndarray = field(init=False)
    offsets: np.ndarray = field(init=False)
    values: np.ndarray = field(init=False)
    body_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        layout, model = self.layout, self.layout.model
        if self.depth_bits not in PASSES:
            raise ValueError(f"depth of {self.depth_bits} bits; one of {', '.join(map(str, PASSES))} is possible")
        if self.tile_tokens < 1 or self.tile_tokens % layout.block_tokens:
            raise ValueError(f"tile of {self.tile_tokens} tokens is not a whole number of blocks of {layout.block_tokens} tokens")
        if self.tile_tokens > MAX_TILE_TOKENS:
            raise ValueError(f"tile of {self.tile_tokens} tokens; at most {MAX_TILE_TOKENS} are possible")
        if self.tokens < 1:
            raise ValueError(f"{self.tokens} tokens; a sequence has at least 1")
        lengths = np.array(self.tile_lengths, dtype=np.int64)
        dim = part_of(model.head_dim)
        kinds = layout.shape[2]
        shape = (model.layers, kinds, model.kv_heads * (model.head_dim // dim), len(lengths))
        meta = DTYPE_BYTES[model.dtype] + 2
        per_tile = np.empty((self.passes + 1, kinds, len(lengths)), dtype=np.int64)
        per_tile[0, 0] = dim * meta
        per_tile[0, 1:] = lengths * meta
        for index, width in enumerate(WIDTHS[: self.passes], start=1):
            per_tile[index] = -(-lengths // 8) * dim * width
        per_tile = -(-per_tile // ALIGN) * ALIGN
        whole = np.broadcast_to(per_tile[:, None, :, None, :], (self.passes + 1, *shape))
        sizes = np.ascontiguousarray(whole.reshape(self.passes + 1, -1))
        ends = sizes.cumsum().reshape(sizes.shape)
        values = np.broadcast_to(lengths * dim, shape).reshape(-1)
        derived = {"shape": shape, "dim": dim, "sizes": sizes, "offsets": ends - sizes, "values": values}
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "body_bytes", int(ends[-1, -1]) if ends.size else 0)

    @property
    def passes(self) -> int:
        return PASSES[self.depth_bits]

    @property
    def count(self) -> int:
        return self.sizes.shape[1]

    @property
    def coded_blocks(self) -> int:
        """Blocks between the edges: entries 1 to coded_blocks of the block table. All blocks, where there are no edges."""
        blocks = self.layout.blocks_for(self.tokens)
        return max(0, blocks - 2) if self.edges else blocks

    @property
    def sink_tokens(self) -> int:
        return min(self.tokens, self.layout.block_tokens) if self.edges else 0

    @property
    def newest_tokens(self) -> int:
        """Tokens of the verbatim edge at the end; 0 if the first block holds the whole sequence."""
        return self.tokens - self.sink_tokens - self.coded_blocks * self.layout.block_tokens if self.edges else 0

    @property
    def tile_lengths(self) -> tuple[int, ...]:
        """Tokens of each tile."""
        coded = self.coded_blocks * self.layout.block_tokens if self.edges else self.tokens
        full, rest = divmod(coded, self.tile_tokens)
        return (self.tile_tokens,) * full + ((rest,) if rest else ())

    def coded_table(self, table: list[int]) -> list[int]:
        return table[1 : 1 + self.coded_blocks] if self.edges else table[: self.coded_blocks]

    def tile_blocks(self, tile: int) -> slice:
        """The blocks of a tile, as a slice of the coded table."""
        per_tile = self.tile_tokens // self.layout.block_tokens
        return slice(tile * per_tile, min((tile + 1) * per_tile, self.coded_blocks))

    def place(self, cell: int) -> tuple[int, int, int, int]:
        """(layer, kind: 0 for K or a latent, 1 for V, head or part of one, tile) of a cell."""
        layer, kind, head, tile = (int(i) for i in np.unravel_index(cell, self.shape))
        return layer, kind, head, tile

    def name(self, cell: int) -> str:
        layer, kind, head, tile = self.place(cell)
        return f"cell (layer {layer}, head {head}, {'KV'[kind] if self.shape[1] > 1 else 'latent'}, tile {tile})"

"""A case of the benches: synthetic KV of one length in scattered blocks, and its encode and expand as functions that can be timed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from abkt.bench.arguments import BenchArguments
from abkt.codec.cells import Cells
from abkt.codec.codec import Codec
from abkt.codec.coder import CodedCells
from abkt.codec.fixed.backend import Arrived, Backend
from abkt.codec.fixed.centre import value_centres
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

TILE_TOKENS = 128


class BenchCase:
    """Synthetic KV of one length in scattered blocks, and what the kernels need to code it."""

    def __init__(self, arguments: BenchArguments, tokens: int, block_tokens: int) -> None:
        on_gpu = arguments.device == "cuda"
        spec = ModelSpec("bench", arguments.layers or (32 if on_gpu else 1), arguments.kv_heads, arguments.head_dim)
        blocks = -(-tokens // block_tokens)
        self.layout = KVLayout(spec, blocks + 2, block_tokens)
        self.tokens, self.table = tokens, (torch.randperm(blocks, generator=torch.Generator().manual_seed(tokens)) + 1).tolist()
        self.pool, self.other = Pool(self.layout, arguments.device), Pool(self.layout, arguments.device)
        spread, level = channels(self.layout, self.pool.data.device)
        for block in self.pool.data:  # one by one, so that no second copy of a large pool in float32 is made
            block.normal_().mul_(spread).add_(level)
        self.codec = Codec(self.layout, tile_tokens=max(TILE_TOKENS, block_tokens))
        self.backend = self.codec.backend_on(self.pool.data.device)

    @property
    def raw_bytes(self) -> int:
        return self.tokens * self.layout.model.kv_bytes_per_token

    def cells(self, depth_bits: int) -> Cells:
        return Cells(self.layout, self.tokens, self.codec.tile_tokens, depth_bits)

    def encode(self, cells: Cells, backend: Backend | None = None) -> CodedCells:
        blocks = cells.coded_table(self.table)
        return (backend or self.backend).encode(self.pool.data, blocks, cells, value_centres(self.pool.data, blocks, cells))

    def arrived(self, cells: Cells, coded: CodedCells) -> Arrived:
        present = np.full(cells.count, cells.passes, dtype=np.int8)
        centres = value_centres(self.pool.data, cells.coded_table(self.table), cells)
        return Arrived(coded.body.cpu().numpy(), cells.offsets, present, coded.classes, centres)

    def expand(self, cells: Cells, arrived: Arrived, backend: Backend | None = None) -> torch.Tensor:
        (backend or self.backend).expand(arrived, self.other.data, cells.coded_table(self.table), cells)
        return self.other.data


def channels(layout: KVLayout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Spread and mean of every channel, [layers, kinds, heads, 1, head_dim]. As in KV of real models, both differ from channel to channel,
    two channels of a head have six times the spread, and the means of keys are about four spreads from 0."""
    shape, generator = (*layout.shape[1:4], 1, layout.shape[-1]), torch.Generator().manual_seed(0)
    spread = (0.5 * torch.randn(shape, generator=generator)).exp()
    spread[..., :2] *= 6
    off = torch.tensor([4.0, 0.5])[: shape[1]].view(1, -1, 1, 1, 1)
    level = off * spread * torch.randn(shape, generator=generator)
    return spread.to(device), level.to(device)


def coder(codec: Codec, cells: Cells, pool: Pool, other: Pool, blocks: list[int]) -> tuple[Callable[[], object], Callable[[], object]]:
    """Encode and expand of these cells, as functions that may be called again and again."""
    device = pool.data.device
    centres = value_centres(pool.data, blocks, cells)
    if device.type == "cpu":
        backend = codec.backend_on(device)
        coded = backend.encode(pool.data, blocks, cells, centres)
        present = np.full(cells.count, cells.passes, dtype=np.int8)
        arrived = Arrived(coded.body.numpy(), cells.offsets, present, coded.classes, centres)
        return (
            lambda: backend.encode(pool.data, blocks, cells, value_centres(pool.data, blocks, cells)),
            lambda: backend.expand(arrived, other.data, blocks, cells),
        )
    from abkt.codec.fixed.enqueue import Encoding, Expansion

    encoding, expansion = Encoding(cells, device), Expansion(cells, device)
    for work in (encoding, expansion):
        work.table.copy_(torch.tensor(blocks))

    def encode() -> None:
        encoding.enqueue(pool.data)
        encoding.copy_report()

    encode()
    expansion.centres.copy_(encoding.centres)
    expansion.offsets.copy_(torch.from_numpy(cells.offsets))
    expansion.present.fill_(cells.passes)
    expansion.classes.copy_(encoding.report.classes)
    return encode, lambda: expansion.enqueue(encoding.body, other.data)

"""Synthetic KV that resembles real KV: channels of different offset and spread, a few outlier channels, layers of different scale."""

import pytest
import torch

from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec


def make_layout(
    layers: int = 2, heads: int = 2, dim: int = 32, dtype: str = "bfloat16", blocks: int = 24, block_tokens: int = 16
) -> KVLayout:
    return KVLayout(ModelSpec("small", layers=layers, kv_heads=heads, head_dim=dim, dtype=dtype), blocks, block_tokens)


def make_pool(layout: KVLayout, seed: int = 0, key_bias: float = 4.0) -> Pool:
    """A pool with KV in every block, so that a test notices if a wrong block is read."""
    generator = torch.Generator().manual_seed(seed)
    _, layers, _, heads, _, dim = layout.shape

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    spread = (0.5 * normal(1, layers, 2, heads, 1, dim)).exp() * (normal(1, layers, 2, 1, 1, 1)).exp()
    spread[..., :2] *= 6  # outlier channels
    bias = torch.tensor([key_bias, 0.1]).view(1, 1, 2, 1, 1, 1) * spread * normal(1, layers, 2, heads, 1, dim)
    pool = Pool(layout)
    pool.data.copy_(normal(*layout.shape) * spread + bias)
    return pool


@pytest.fixture(scope="session")
def layout_of():
    return make_layout


@pytest.fixture(scope="session")
def filled_pool():
    return make_pool


@pytest.fixture(scope="session")
def table_of():
    def scattered(layout: KVLayout, tokens: int, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(layout.blocks, generator=generator)[: layout.blocks_for(tokens)].tolist()

    return scattered

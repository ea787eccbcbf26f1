"""Rivals that leave tokens out instead of coding them: what is sent is raw, and later tokens do not see the rest.

SnapKV (arXiv 2404.14469): each head keeps the newest 32 tokens, and of the others those that the last 32 queries attend to most, after
pooling over 7 neighbours, as in the authors' code (window_size, kernel_size, max pooling); query heads that share a KV head are added up,
since a KV head is sent once. First-and-last, in the manner of PDTrim (arXiv 2509.04467, versions 1 to 3): in some layers only the first and
the last tokens are sent; here these are the layers whose last queries attend least to the rest.
A message is the kept K and V in the pool's dtype and a bit for each (layer, head, token).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from experiments.quality.methods import Held, RatePoint

WINDOW, KERNEL = 32, 7
ENDS = 64  # first and newest tokens that a trimmed layer keeps, each


@dataclass(frozen=True)
class SnapKv:
    """shares: shares of the tokens that are kept."""

    name: str = "snapkv"
    shares: tuple[float, ...] = (0.25, 0.5)

    def points(self, held: Held) -> Iterator[RatePoint]:
        scores = torch.stack([F.max_pool1d(a, KERNEL, 1, KERNEL // 2) for a in attention_of(held)])
        scores[..., -WINDOW:] = float("inf")
        for share in self.shares:
            count = max(min(WINDOW, held.tokens), round(share * held.tokens))
            kept = torch.zeros(scores.shape, dtype=torch.bool).scatter_(-1, scores.topk(count, -1).indices, True)
            yield point(held, f"{share:g}", kept)


@dataclass(frozen=True)
class FirstAndLast:
    """shares: shares of the layers that keep all tokens."""

    name: str = "first-last"
    shares: tuple[float, ...] = (0.25, 0.5)

    def points(self, held: Held) -> Iterator[RatePoint]:
        middle = torch.stack(list(attention_of(held)))[..., ENDS:-ENDS].sum((1, 2))
        for share in self.shares:
            kept = torch.ones(len(middle), held.pool.layout.model.kv_heads, held.tokens, dtype=torch.bool)
            trimmed = middle.argsort()[: len(middle) - round(share * len(middle))]
            kept[trimmed, :, ENDS : max(ENDS, held.tokens - ENDS)] = False
            yield point(held, f"{share:g}", kept)


def attention_of(held: Held) -> Iterator[torch.Tensor]:
    """For each layer the attention that the last queries pay to each token, [kv_heads, tokens], summed over queries and their heads."""
    windows = held.pool.layout.model.layer_windows
    for layer in range(held.pool.layout.model.layers):
        query, scale = held.importance.queries[layer]
        keys, _ = held.pool.read(held.table, layer, held.tokens)
        q = query[:, -WINDOW:].float().unflatten(0, (len(keys), -1))
        at = torch.arange(held.tokens - q.shape[2], held.tokens)[:, None]
        seen = torch.arange(held.tokens) <= at
        if windows and windows[layer]:
            seen &= torch.arange(held.tokens) > at - windows[layer]
        attention = (q @ keys.float()[:, None].mT * scale).masked_fill(~seen, float("-inf")).softmax(-1)
        yield attention.sum((1, 2))


def point(held: Held, rate: str, kept: torch.Tensor) -> RatePoint:
    """kept: [layers, kv_heads, tokens] bool."""
    model = held.pool.layout.model
    of_token = model.kv_bytes_per_token // (model.layers * model.kv_heads)
    wire_bytes = int(kept.sum()) * of_token + -(-kept.numel() // 8)
    source = held.table[: held.pool.layout.blocks_for(held.tokens)]

    def put(table: list[int]) -> None:
        held.pool.data[table[: len(source)]] = held.pool.data[source]

    return RatePoint(rate, wire_bytes, put, kept=kept)


def kept_logits(model: Any, kv: Sequence[tuple[torch.Tensor, ...]], kept: torch.Tensor, after: list[int]) -> torch.Tensor:
    """Logits [len(after), vocabulary] of given tokens after KV of which each head sees only the kept tokens.

    kv: keys and values of each layer, [kv_heads, tokens, head_dim]. kept: [layers, kv_heads, tokens] bool.
    """
    from transformers import DynamicCache
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    tokens, n = kept.shape[2], len(after)
    at, every = torch.arange(tokens, tokens + n)[:, None], torch.arange(tokens + n)

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float,
        **more: object,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        layer, window = int(module.layer_idx), getattr(module, "sliding_window", None)
        seen = every <= at
        if window:
            seen = seen & (every > at - int(window))
        of_heads = seen & F.pad(kept[layer], (0, n), value=True)[:, None]  # [kv_heads, n, tokens + n]
        of_heads = of_heads.repeat_interleave(query.shape[1] // key.shape[1], 0)[None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=of_heads, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("abkt_kept", attend)
    was = model.config._attn_implementation
    model.set_attn_implementation("abkt_kept")
    try:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(kv):
            cache.update(keys[None].to(model.dtype), values[None].to(model.dtype), layer)
        with torch.inference_mode():
            positions = torch.arange(tokens, tokens + n)[None]
            return model(torch.tensor([after]), position_ids=positions, past_key_values=cache).logits[0].float()
    finally:
        model.set_attn_implementation(was)

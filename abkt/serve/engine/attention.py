"""Attention over the block pool, for any Hugging Face causal LM: new K and V are written into the pool, earlier ones are read from it.

transformers passes every layer's query, key and value (after RoPE) to the attention function named in the config, with the layer's mask
(masks.py) and its own terms: scale, soft cap, sinks. This one finds the pool and the rows in the pass that runs (`running`). The rest of
the model is unchanged, and nothing is cached twice. A keyword argument that is not known here is a feature that would be left out, so it is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from abkt.codec.importance import Importance
from abkt.kv.pool import Pool
from abkt.serve.engine.features import Unsupported
from abkt.serve.engine.masks import LayerMask, layer_mask

NAME = "abkt_pool"
QUERIES = 256
"""Queries at a time where a layer's window, soft cap or sinks need their logits or mask in memory."""
OWN_ATTENTION = "attention of its own, outside of transformers' attention and mask interfaces"
PASSED_ON = (
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "cache_position",
    "logits_to_keep",
    "return_dict",
)
"""Keyword arguments of a model's forward that some models pass down to attention, and that mean nothing to it."""


@dataclass(slots=True)
class SequenceRow:
    """One sequence: its block table and how many of its tokens have KV in the pool."""

    table: Sequence[int]
    tokens: int
    adjacent: bool = field(init=False)
    index: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        first = self.table[0]
        self.adjacent = list(self.table) == list(range(first, first + len(self.table)))
        self.index = torch.tensor(self.table)

    def blocks(self, first: int, stop: int) -> torch.Tensor | slice:
        """Entries `first` to `stop` of the table: a slice if the blocks are adjacent, so that reading copies only once."""
        if self.adjacent:
            return slice(self.table[0] + first, self.table[0] + stop)
        return self.index[first:stop]


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """What a layer asks of attention. softcap: logits become softcap * tanh(logits / softcap); 0: as they are. sinks: [heads], a logit that
    takes weight and adds no value; None: there are none."""

    layer: int
    scale: float
    mask: LayerMask
    softcap: float = 0.0
    sinks: torch.Tensor | None = None

    @property
    def fused(self) -> bool:
        """Whether the fused kernel computes it."""
        return not self.softcap and self.sinks is None

    def over(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """query [batch, heads, n, dim], key, value [batch, kv_heads, m, dim], seen [n, m] bool (None: all) -> [batch, heads, n, dim]."""
        if self.fused:
            return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=self.scale, enable_gqa=True)
        kv_heads, n, m = key.shape[1], query.shape[2], key.shape[2]
        logits = (query.unflatten(1, (kv_heads, -1)) @ key[:, :, None].mT).float() * self.scale  # [batch, kv_heads, group, n, m]
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if seen is not None:
            logits = logits.masked_fill(~seen, float("-inf"))
        if self.sinks is not None:
            sinks = self.sinks.float().view(1, kv_heads, -1, 1, 1).expand(*logits.shape[:3], n, 1)
            logits = torch.cat((logits, sinks), -1)
        weights = logits.softmax(-1)[..., :m].to(query.dtype)
        return (weights @ value[:, :, None]).flatten(1, 2)


@dataclass(slots=True)
class ForwardPass:
    """One forward pass: a whole prompt (one row without tokens), more tokens of one row, or one decode iteration (a token for each row).

    importance: observes the queries of each layer while a prompt is computed. layers: the attention of each layer, in the order computed.
    """

    pool: Pool
    rows: Sequence[SequenceRow]
    importance: Importance | None = None
    layers: list[LayerAttention] = field(default_factory=list)
    blocks: torch.Tensor = field(init=False)
    offsets: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        size = self.pool.layout.block_tokens
        self.blocks = torch.tensor([row.table[row.tokens // size] for row in self.rows])
        self.offsets = torch.tensor([row.tokens % size for row in self.rows])

    def run(self, asked: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of one layer: query [batch, heads, n, dim], key, value [batch, kv_heads, n, dim] -> [batch, heads, n, dim]."""
        self.layers.append(asked)
        model = self.pool.layout.model
        for name, new in (("keys", key), ("values", value)):
            if (new.shape[1], new.shape[3]) != (model.kv_heads, model.head_dim):
                raise Unsupported(
                    f"layers of different KV shapes ({name} of layer {asked.layer}: {new.shape[1]} heads of {new.shape[3]}, "
                    f"not {model.kv_heads} of {model.head_dim})"
                )
        if self.rows[0].tokens and query.shape[2] == 1:
            return self.decode(asked, query, key, value)
        return self.extend(asked, query, key, value) if self.rows[0].tokens else self.prefill(asked, query, key, value)

    def prefill(self, asked: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """A whole prompt of one row."""
        key, value = self._rounded(key), self._rounded(value)
        self.pool.write(self.rows[0].table, asked.layer, 0, key[0], value[0])
        key, value = key.to(query.dtype), value.to(query.dtype)
        if self.importance is not None:
            self.importance.observe(asked.layer, query[0], asked.scale)
        if asked.fused and asked.mask.first(query.shape[2] - 1) == 0:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=asked.scale, enable_gqa=True)
        return self._in_parts(asked, query, key, value, 0, 0)

    def extend(self, asked: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """n more tokens of each row. Each query attends to the pool and to the new tokens up to itself."""
        n, key, value = query.shape[2], self._rounded(key), self._rounded(value)
        parts = []
        for i, row in enumerate(self.rows):
            self.pool.write(row.table, asked.layer, row.tokens, key[i], value[i])
            begin, held = self._held(row, asked, row.tokens, row.tokens + n)
            keys, values = held.to(query.dtype)
            parts.append(self._in_parts(asked, query[i : i + 1], keys, values, row.tokens, begin))
        return torch.cat(parts)

    def decode(self, asked: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """One token of each row."""
        data = self.pool.data
        data[self.blocks, asked.layer, 0, :, self.offsets] = self._rounded(key)[:, :, 0]
        data[self.blocks, asked.layer, 1, :, self.offsets] = self._rounded(value)[:, :, 0]
        batch, heads, _, dim = query.shape
        kv_heads = key.shape[1]
        # The query heads of a KV head become query positions: keys need not be repeated, and the fused kernel runs without a mask.
        grouped = query.view(batch, kv_heads, heads // kv_heads, dim)
        out = torch.empty_like(query)
        for i, row in enumerate(self.rows):
            begin, held = self._held(row, asked, row.tokens, row.tokens + 1)
            keys, values = held[..., asked.mask.first(row.tokens) - begin :, :].to(query.dtype)
            if asked.fused:
                out[i] = scaled_dot_product_attention(grouped[i : i + 1], keys, values, scale=asked.scale).view(heads, 1, dim)
            else:
                out[i] = asked.over(query[i : i + 1], keys, values)[0]
        return out

    def _held(self, row: SequenceRow, asked: LayerAttention, query: int, stop: int) -> tuple[int, torch.Tensor]:
        """The K and V of a row up to token `stop`, from the first block that queries from position `query` on see.

        Returns the position of the first token, and [2, 1, kv_heads, tokens, head_dim].
        """
        size = self.pool.layout.block_tokens
        first, last = asked.mask.first(query) // size, -(-stop // size)
        held = self.pool.data[row.blocks(first, last), asked.layer].permute(1, 2, 0, 3, 4)  # [kinds, kv_heads, blocks, tokens, head_dim]
        return first * size, held.flatten(2, 3)[:, None, :, : stop - first * size]

    def _in_parts(
        self, asked: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int, begin: int
    ) -> torch.Tensor:
        """Queries from position `start` on, QUERIES or a window at a time, over keys from position `begin` on."""
        n, step = query.shape[2], max(QUERIES, asked.mask.window)
        parts = []
        for at in range(0, n, step):
            stop = min(n, at + step)
            first, end = asked.mask.first(start + at), start + stop
            keys = slice(first - begin, end - begin)
            positions = torch.arange(first, end, device=query.device)
            seen = asked.mask.seen(positions[start + at - first :], positions)
            parts.append(asked.over(query[:, :, at:stop], key[:, :, keys], value[:, :, keys], seen))
        return torch.cat(parts, 2)

    def _rounded(self, new: torch.Tensor) -> torch.Tensor:
        """New K or V in the pool's dtype. Attention reads these too, so that a prompt and its KV from a pool give the same answer."""
        return new.to(self.pool.dtype)


_RUNNING: ContextVar[ForwardPass | None] = ContextVar("running", default=None)


@contextmanager
def running(pass_: ForwardPass) -> Iterator[None]:
    """Attention within this context belongs to a pass."""
    token = _RUNNING.set(pass_)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **unknown: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function with transformers' interface; returns ([batch, tokens, heads, dim], None for the attention weights).

    Raises Unsupported, which names the feature, for a keyword argument with a value that is not known here, and for a mask that is not one
    of masks.py.
    """
    pass_ = _RUNNING.get()
    if pass_ is None:
        raise ValueError("this model's attention runs over a block pool; call the model through abkt.serve.engine.engine.Engine")
    extra = sorted(name for name, value in unknown.items() if value is not None and name not in PASSED_ON)
    if extra:
        raise Unsupported(f"the unknown attention argument {', '.join(extra)}")
    if not isinstance(attention_mask, LayerMask):
        raise Unsupported(OWN_ATTENTION)
    if sliding_window is not None and attention_mask.window != sliding_window:
        raise Unsupported(f"a sliding window of {sliding_window} tokens beside a mask of {attention_mask.window or 'all'}")
    if dropout or is_causal is False:
        raise Unsupported("attention dropout" if dropout else "bidirectional attention")
    if getattr(module, "attn_temperature_tuning", False) and not getattr(module, "use_rope", True):
        query = query * _temperature(module, pass_, query)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    asked = LayerAttention(module.layer_idx, scale, attention_mask, float(softcap or 0.0), s_aux)
    return pass_.run(asked, query, key, value).transpose(1, 2).contiguous(), None


def _temperature(module: Any, pass_: ForwardPass, query: torch.Tensor) -> torch.Tensor:
    """What is missing of the query scale of Llama 4's layers without RoPE, [batch, 1, n, 1].

    It grows with the position, and without a cache the model takes a row's new tokens for the first ones. Source: scalable softmax (arXiv
    2501.19399), as in transformers' modeling_llama4.
    """
    assumed = torch.arange(query.shape[2], device=query.device).float()[None]
    positions = assumed + torch.tensor([[row.tokens] for row in pass_.rows], device=query.device)
    right, taken = (torch.log1p(torch.floor((p + 1) / module.floor_scale)) * module.attn_scale + 1 for p in (positions, assumed))
    return (right / taken)[:, None, :, None].to(query.dtype)


def register() -> str:
    """Register the attention with transformers; returns its name for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, layer_mask)
    return NAME

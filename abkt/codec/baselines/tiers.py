"""SpectrumKV's tiers (arXiv 2606.08635) and their control: each token in float16, int8 or int4, by its importance or at random.

Assumptions: 20 % of the tokens in float16, 30 % in int8, the rest in int4, one tier for all layers of a token; integers are quantised
per token and head (uniform.py). Without given scores, a token's importance is its mean key norm. A tier takes 2 bits per token on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.baselines.uniform import put_tokens, take_tokens
from abkt.codec.bits import pack, packed_bytes, unpack

TIERS = (16, 8, 4)


def key_norms(x: torch.Tensor) -> torch.Tensor:
    """The mean over layers and heads of a token's key norm, [tokens]."""
    return x[:, 0].float().norm(dim=-1).mean((0, 1))


@dataclass(frozen=True)
class Tiers(MessageBaseline):
    """shares: shares of the tokens in float16 and in int8. scores: importance of each token; None takes key norms. seed: if given, scores
    are drawn at random from it instead."""

    name: str
    shares: tuple[float, float] = (0.2, 0.3)
    scores: tuple[float, ...] | None = None
    seed: int | None = None

    def tiers(self, x: torch.Tensor) -> torch.Tensor:
        """The index in TIERS of each token, [tokens] uint8. Of two equally important tokens the earlier one ranks higher."""
        tokens = x.shape[3]
        if self.seed is not None:
            scores = torch.rand(tokens, generator=torch.Generator().manual_seed(self.seed))
        else:
            scores = key_norms(x) if self.scores is None else torch.tensor(self.scores)
        if scores.shape != (tokens,):
            raise ValueError(f"scores {tuple(scores.shape)} for {tokens} tokens; give one for each")
        order, tiers = scores.argsort(descending=True, stable=True), torch.full((tokens,), 2, dtype=torch.uint8)
        first, second = round(self.shares[0] * tokens), round(sum(self.shares) * tokens)
        tiers[order[:second]], tiers[order[:first]] = 1, 0
        return tiers

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        tiers = self.tiers(x)
        first_tier = x[..., tiers == 0, :].half()
        if not first_tier.isfinite().all():
            raise ValueError("KV is not finite, or beyond float16; the first tier cannot hold it")
        parts: list[torch.Tensor | bytes] = [pack(tiers, 2), first_tier]
        for tier in (1, 2):
            parts += put_tokens(x[..., tiers == tier, :], TIERS[tier])
        return parts

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        layers, kinds, heads, tokens, dim = shape
        tiers = unpack(body.take(torch.uint8, packed_bytes(tokens, 2)), 2, (tokens,))
        out = torch.empty(shape)
        for tier, bits in enumerate(TIERS):
            here = tiers == tier
            part = (layers, kinds, heads, int(here.sum()), dim)
            out[..., here, :] = body.take(torch.float16, *part).float() if tier == 0 else take_tokens(body, bits, part)
        return out

"""The choice of the next token: the most likely one, or one drawn with the request's own seed.

A draw is argmax(logits / temperature + Gumbel noise), which is a draw from the softmax (Gumbel-max trick; Maddison, Tarlow and Minka,
A* sampling, 2014). The noise depends only on the seed and the position. So a request gets the same tokens in any batch and on any
worker, if the logits are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from abkt.serve.engine.generation import Sampling, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token. margin: its score minus that of the second best token; a score is a logit, or a logit plus the noise of a draw. A
    margin near 0 is a near-tie, which the order of a floating-point sum may decide. logprobs: log-probabilities of this token and of the
    likeliest ones, if the sampling asks for them; those of the model itself, before temperature, top_k and top_p."""

    token: int
    margin: float
    logprobs: TokenLogprobs = ()


def choose(logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[Choice]:
    """Choose the next token of each row.

    Parameters
    ----------
    logits : [rows, vocabulary], a floating-point type.
    samplings, positions : sampling of each row, and position of the token to choose, counted from the start of the row's sequence.
    """
    given = scores = logits.float()
    if any(sampling.temperature > 0 for sampling in samplings):
        places = zip(scores, samplings, positions, strict=True)
        scores = torch.stack([_drawn(row, sampling, position) if sampling.temperature > 0 else row for row, sampling, position in places])
    best, second = scores.topk(2, -1).values.unbind(-1)
    tokens, margins = scores.argmax(-1).tolist(), (best - second).tolist()
    rows = zip(given, samplings, tokens, strict=True)
    found = [_logprobs(row, sampling.logprobs, token) if sampling.logprobs >= 0 else () for row, sampling, token in rows]
    return [Choice(*chosen) for chosen in zip(tokens, margins, found, strict=True)]


def _logprobs(logits: torch.Tensor, likeliest: int, chosen: int) -> TokenLogprobs:
    """Log-probabilities of the chosen token and of the likeliest ones."""
    shares = logits.log_softmax(-1)
    top = shares.topk(min(likeliest, len(shares)))
    return ((chosen, shares[chosen].item()), *zip(top.indices.tolist(), top.values.tolist(), strict=True))


def _drawn(logits: torch.Tensor, sampling: Sampling, position: int) -> torch.Tensor:
    """Scores [vocabulary] whose argmax is the draw."""
    scores = logits / sampling.temperature
    size = len(scores)
    if 0 < sampling.top_k < size or sampling.top_p < 1:
        ordered, order = scores.sort(descending=True, stable=True)
        kept = torch.arange(size, device=scores.device) < (sampling.top_k or size)
        shares = ordered.masked_fill(~kept, -math.inf).softmax(-1)
        kept &= shares.cumsum(-1) - shares < sampling.top_p  # always keeps the first
        scores = scores.masked_fill(~torch.zeros_like(kept).scatter(0, order, kept), -math.inf)
    # Drawn on the CPU, so that every device draws the same noise. The key makes the noise of neighbouring seeds and positions independent.
    noise = np.random.Generator(np.random.Philox(key=[sampling.seed, position])).gumbel(size=size)
    return scores + torch.from_numpy(noise).to(scores)

"""Which token comes next: the likeliest, or one drawn by the request's own seed.

Drawn is argmax(logits / temperature + Gumbel noise), which is a draw from the softmax (Gumbel-max trick; Maddison, Tarlow and Minka,
A* sampling, 2014). The noise follows from the seed and the position alone, so a request gets the same tokens whatever batch it is in and
whichever worker goes on with it, as far as the logits are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

SEED_CAP = 1 << 31


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0: greedy, and the rest is not looked at. top_k: of the likeliest tokens; 0: all. top_p: the fewest likeliest tokens
    that have this probability together, of those that top_k leaves. Raises ValueError, one line."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 0.01 <= self.temperature <= 100:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy), or 0.01 to 100")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.seed < SEED_CAP:
            raise ValueError(f"seed is {self.seed}; it must be 0 to {SEED_CAP - 1}")

    def fields(self) -> dict[str, int | float]:
        """For a message; `of` reads them back."""
        return asdict(self)

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Sampling:
        """Raises ValueError, one line, where a field is no number of its kind. What is missing is as in GREEDY."""
        found: dict[str, Any] = {}
        for name, kind in ((f.name, (int, float) if f.name in ("temperature", "top_p") else (int,)) for f in fields(cls)):
            value = members.get(name, getattr(GREEDY, name))
            if type(value) not in kind or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}; it must be a number")
            found[name] = value
        return cls(**found)


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Choice:
    """margin: by how much the token won over the next one, in what was compared: logits, or scores of a draw. Near 0 it is a near-tie,
    which the order of a sum may decide."""

    token: int
    margin: float


def choose(logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[Choice]:
    """logits [rows, vocabulary]; positions: of the token that is chosen, counted from the start of its sequence."""
    scores = logits.float()
    if any(sampling.temperature > 0 for sampling in samplings):
        rows = zip(scores, samplings, positions, strict=True)
        scores = torch.stack([_drawn(row, sampling, position) if sampling.temperature > 0 else row for row, sampling, position in rows])
    best, second = scores.topk(2, -1).values.unbind(-1)
    return [Choice(token, margin) for token, margin in zip(scores.argmax(-1).tolist(), (best - second).tolist(), strict=True)]


def _drawn(logits: torch.Tensor, sampling: Sampling, position: int) -> torch.Tensor:
    """[vocabulary] whose argmax is the draw."""
    scores = logits / sampling.temperature
    size = len(scores)
    if 0 < sampling.top_k < size or sampling.top_p < 1:
        ordered, order = scores.sort(descending=True, stable=True)
        kept = torch.arange(size, device=scores.device) < (sampling.top_k or size)
        shares = ordered.masked_fill(~kept, -math.inf).softmax(-1)
        kept &= shares.cumsum(-1) - shares < sampling.top_p  # the first always
        scores = scores.masked_fill(~torch.zeros_like(kept).scatter(0, order, kept), -math.inf)
    # On the CPU, so that every device draws the same; keyed, so that neighbours in seed and position have nothing in common.
    noise = np.random.Generator(np.random.Philox(key=[sampling.seed, position])).gumbel(size=size)
    return scores + torch.from_numpy(noise).to(scores)

"""Examination of how well the probe uses its context: recall by distance, and held-out loss by the number of earlier tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from experiments.probe import tasks
from experiments.probe.tasks import RecallSample
from experiments.probe.trainer import recall

LENGTHS = (256, 512, 1024, 2048)
DISTANCES = (64, 128, 256, 512, 1024, 1536, 2048)
POSITIONS = (1, 16, 64, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Examination:
    """Shares of right tokens, in [0, 1], and losses in nats per token.

    recall_by_length: key-value recall (values of 1 token) by tokens of context. copying_by_length: copying, likewise. needles_by_length:
    values of 2 tokens between held-out text, likewise. recall_by_distance: key-value recall by tokens between the pair and its question, in
    contexts of 2,048 tokens. loss_by_position: held-out loss of tokens with at least [from] and less than [to] tokens before them.
    """

    recall_by_length: dict[str, float]
    copying_by_length: dict[str, float]
    needles_by_length: dict[str, float]
    recall_by_distance: dict[str, float]
    loss_by_position: dict[str, float]


def examine(model: Any, held_out: np.ndarray, samples: int = 8, seed: int = 1) -> Examination:
    """held_out: [>= 2048] token ids of text that was not trained on."""
    rng = np.random.default_rng(seed)
    symbols = tasks.MAX_SYMBOLS

    def text() -> np.ndarray:
        start = rng.integers(0, len(held_out) - max(LENGTHS))
        return held_out[start : start + max(LENGTHS)].astype(np.int64)

    def share(make: Callable[[int], RecallSample]) -> dict[str, float]:
        return {str(n): round(float(np.mean([recall(model, [make(n)]) for _ in range(samples)])), 4) for n in LENGTHS}

    return Examination(
        recall_by_length=share(lambda n: tasks.key_values(rng, n, symbols, asks=32)),
        copying_by_length=share(lambda n: tasks.copying(rng, n, symbols)),
        needles_by_length=share(lambda n: tasks.needles(rng, n, symbols, text())),
        recall_by_distance=recall_by_distance(model, rng, samples),
        loss_by_position=loss_by_position(model, [text() for _ in range(2 * samples)]),
    )


@torch.no_grad()
def recall_by_distance(model: Any, rng: np.random.Generator, samples: int) -> dict[str, float]:
    """Share of single-token values recalled, by tokens between the pair and its question."""
    hits: dict[int, list[bool]] = {distance: [] for distance in DISTANCES}
    for _ in range(samples):
        tokens = tasks.key_values(rng, max(LENGTHS), tasks.MAX_SYMBOLS, asks=128).tokens
        ask = int(np.flatnonzero(tokens == tasks.ASK)[0])
        guess = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].argmax(-1).numpy()
        place = {int(key): 2 + 2 * i for i, key in enumerate(tokens[2:ask:2])}
        for at in range(ask + 1, ask + 1 + 2 * 128, 2):
            distance = at - place[int(tokens[at])]
            bucket = next((d for d in DISTANCES if distance <= d), None)
            if bucket:
                hits[bucket].append(bool(guess[at] == tokens[at + 1]))
    return {f"<= {distance}": round(float(np.mean(hit)), 4) for distance, hit in hits.items() if hit}


@torch.no_grad()
def loss_by_position(model: Any, texts: list[np.ndarray]) -> dict[str, float]:
    losses = []
    for text in texts:
        tokens = torch.from_numpy(text)[None]
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none").numpy())
    mean = np.stack(losses).mean(0)
    return {f"{a}-{b}": round(float(mean[a:b].mean()), 4) for a, b in pairwise(POSITIONS)}

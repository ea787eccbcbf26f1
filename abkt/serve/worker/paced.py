"""The engine of compute=paced: it sleeps the times of a profile but has real KV to send. A cluster can then have more workers than the
machine has cores.

The model computes one prompt once, in `prepare`. Attention is causal, so the KV and the queries of its first n tokens are those of a prompt
of these n tokens. A prompt of n tokens gets copies of them, and takes the profile's prefill time. A decode iteration takes the profile's
time and writes nothing. Codec, transfer and memory are real.
Not modelled: the answer (every output token is 0), the KV of output tokens, contention of two phases for a core.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from abkt.codec.importance import Importance
from abkt.kv.pool import Pool
from abkt.profile.schema import Profile
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.engine import Engine
from abkt.serve.engine.generation import GREEDY, Sampling
from abkt.serve.engine.sampling import Choice

MADE_UP = Choice(0, math.inf)


class PacedEngine:
    """Replaces an Engine. Raises ValueError if the profile lacks a table."""

    def __init__(self, engine: Engine, profile: Profile) -> None:
        self.layout = engine.layout
        self.pool: Pool = engine.pool
        self._engine = engine
        self._prefill, self._decode = profile.fit("prefill"), profile.fit("decode")
        self._prompt: tuple[int, ...] = ()
        self._blocks = engine.pool.data[:0]
        self._queries: dict[int, tuple[torch.Tensor, float]] = {}

    def prepare(self, tokens: Sequence[int]) -> None:
        """Compute this prompt, unless it is prepared already. `begin` then takes prompts up to its length. The pool must be empty; it is
        overwritten."""
        if tuple(tokens) == self._prompt:
            return
        seen = Importance(window=len(tokens))
        table = list(range(self.layout.blocks_for(len(tokens))))
        self._engine.begin(tokens, table, seen)
        self._prompt, self._blocks, self._queries = tuple(tokens), self.pool.data[: len(table)].clone(), seen.queries

    def begin(
        self, tokens: Sequence[int], table: Sequence[int], importance: Importance | None = None, sampling: Sampling = GREEDY
    ) -> Choice:
        """As Engine.begin. Raises ValueError for a prompt longer than the prepared one."""
        until_s = time.monotonic() + self._prefill.seconds(tokens=len(tokens))
        if len(tokens) > (most := len(self._prompt)):
            raise ValueError(f"a prompt of {len(tokens)} tokens, but the KV of {most} is prepared; prepare the longest one first")
        used = self.layout.blocks_for(len(tokens))
        self.pool.data[torch.tensor(table[:used])] = self._blocks[:used]
        if importance is not None:
            for layer, (queries, scale) in self._queries.items():
                importance.observe(layer, queries[:, : len(tokens)], scale)
        _sleep_until(until_s)
        return MADE_UP

    def step(self, rows: Sequence[SequenceRow], last: Sequence[int], samplings: Sequence[Sampling]) -> list[Choice]:
        """As Engine.step."""
        until_s = time.monotonic() + self._decode.seconds(batch=len(rows), context=sum(row.tokens for row in rows))
        for row in rows:
            row.tokens += 1
        _sleep_until(until_s)
        return [MADE_UP] * len(rows)


def _sleep_until(until_s: float) -> None:
    if (left_s := until_s - time.monotonic()) > 0:
        time.sleep(left_s)

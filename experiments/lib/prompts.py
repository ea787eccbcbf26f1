"""Prompts for the twin: requests of a trace, filled with recall lines as the probe was trained on, so that every answer can be checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from abkt.serve.frontend.prompt import Prompt
from experiments.probe.tasks import recall_prompt
from sim.workload.requests import Request


def prompts_for(requests: Sequence[Request], seed: int) -> list[Prompt]:
    """The requests with tokens, which depend only on request_id and seed."""
    out = []
    for request in requests:
        tokens, expected = recall_prompt(np.random.default_rng((seed, request.request_id)), request.isl)
        out.append(Prompt(request.request_id, request.arrival_s, tokens, request.osl, expected))
    return out


def answers(prompts: Sequence[Prompt], outputs: dict[int, list[int]]) -> dict[str, float]:
    """Share of right answer tokens: `first` (by the prefill side, from its own KV) and `rest` (by the decode side, from received KV)."""
    first, rest = [], []
    for prompt in prompts:
        if prompt.request_id in outputs:
            right = [a == b for a, b in zip(prompt.expected, outputs[prompt.request_id], strict=False)]
            first += right[:1]
            rest += right[1:]
    return {"first": float(np.mean(first)) if first else float("nan"), "rest": float(np.mean(rest)) if rest else float("nan")}

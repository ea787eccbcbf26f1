"""Whether a model tolerates KV of few bits: three retrieval trials for each codec, as in SpectrumKV's probe (arXiv 2606.08635).

Some models, such as Qwen2.5, have keys with a large constant in a few channels. A scale for each token then spends its codes on that
constant, and 4 bits break the model although the squared error looks normal. A scale for each channel removes the constant first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from experiments.quality.measure import Bench
from experiments.quality.methods import Method
from experiments.quality.samples import QualitySample

TRIALS = 3
KEPT = 0.9  # share of the answers found after raw KV that must be found, in every trial
LEAST = 0.5  # share of answers that must be found after raw KV, or the trials say nothing


@dataclass(frozen=True, slots=True)
class LowBitVerdict:
    """bears: whether the model tolerates the codec, which means that every trial was passed; None if the model does not find enough answers
    after raw KV. found, raw_found: share of answers found in each trial."""

    method: str
    rate: str
    bears: bool | None
    found: tuple[float, ...]
    raw_found: tuple[float, ...]


def verdicts(
    bench: Bench, trials: Sequence[QualitySample], methods: Sequence[Method], rates: Sequence[str] = ("", "2", "4")
) -> list[LowBitVerdict]:
    """The verdict for each method at those of its rates that are in `rates`."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for sample in trials:
        held = bench.prefill(sample)

        def share(put: Callable[[list[int]], object], sample: QualitySample = sample) -> float:
            answers, target = torch.tensor(sample.answers[1:]), torch.tensor(sample.continuation[1:])
            return float((bench.logits(sample, [(0, put)]).argmax(-1) == target)[answers].float().mean())

        def put_raw(table: list[int]) -> None:
            bench.engine.pool.data[table] = bench.engine.pool.data[bench.sent]

        raw = share(put_raw)
        for method in methods:
            for point in method.points(held):
                if point.rate in rates:
                    found.setdefault((method.name, point.rate), []).append((share(point.put), raw))
    return [_verdict(name, rate, of) for (name, rate), of in found.items()]


def _verdict(name: str, rate: str, of: list[tuple[float, float]]) -> LowBitVerdict:
    found, raw = (tuple(values) for values in zip(*of, strict=True))
    bears = all(a >= KEPT * b for a, b in of) if min(raw) >= LEAST else None
    return LowBitVerdict(name, rate, bears, found, raw)


def lines(tokenizer: Any, rng: np.random.Generator, tokens: int, asks: int = 8) -> QualitySample:
    """A retrieval prompt of about `tokens` tokens for any model: numbered lines, each with a number, and questions for some of the numbers.

    The answers are the digits, however the tokenizer splits them.
    """
    head = "Here is a list of numbers.\n"
    size = max(1, len(tokenizer.encode("The number of line 123 is 12345.\n", add_special_tokens=False)))
    count = max(asks, (tokens - 16) // size)
    values = rng.integers(10_000, 100_000, count)
    prompt = tokenizer(head + "".join(f"The number of line {i} is {value}.\n" for i, value in enumerate(values))).input_ids
    continuation, answers = [], []
    for i in rng.choice(count, asks, replace=False):
        for part in re.split(r"(?<=is )", f"The number of line {i} is {values[i]}.\n"):
            ids = tokenizer.encode(part, add_special_tokens=False)
            continuation += ids
            answers += [part[0].isdigit()] * len(ids)
    return QualitySample("lines", tuple(prompt), tuple(continuation), tuple(answers), (-1,) * len(continuation))

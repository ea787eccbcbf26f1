"""Whether a model's KV bears few bits: three retrieval trials for each codec, as SpectrumKV's probe has them (arXiv 2606.08635).

Some models (Qwen2.5 is known for it) have keys with a large constant in a few channels. A scale for each token then spends its codes on
that constant, and 4 bits break the model though the squared error looks like any other's; a scale for each channel takes it out first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from experiments.quality.measure import Bench
from experiments.quality.methods import Method
from experiments.quality.samples import QualitySample

TRIALS = 3
KEPT = 0.9  # of what the model finds after raw KV, in every trial
LEAST = 0.5  # what it has to find after raw KV for a trial to tell anything


@dataclass(frozen=True, slots=True)
class LowBitVerdict:
    """bears: whether every trial was passed; None where the model does not find enough without any loss. found, raw_found: the share of
    answers in each trial."""

    method: str
    rate: str
    bears: bool | None
    found: tuple[float, ...]
    raw_found: tuple[float, ...]


def verdicts(
    bench: Bench, trials: Sequence[QualitySample], methods: Sequence[Method], rates: Sequence[str] = ("", "2", "4")
) -> list[LowBitVerdict]:
    """Of each method at those of its points that are among `rates`."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for sample in trials:
        held = bench.prefill(sample)

        def share(put: Callable[[list[int]], None], sample: QualitySample = sample) -> float:
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


def lines(tokenizer, rng: np.random.Generator, tokens: int, asks: int = 8) -> QualitySample:
    """For any model: numbered lines with a number each, and the numbers of some of them asked for; about `tokens` long.

    An answer is the digits that the prompt determines, whatever the tokenizer makes of them.
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

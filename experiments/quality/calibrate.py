"""A model's calibration: how much an error in each head changes the answers, how much weight the last queries get, and which heads are
coded as differences of tokens.

A prompt is prefilled twice: once for the noise in its heads, several of which share a forward pass, and once for all trials of the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from abkt.codec.calibration import Calibration
from abkt.codec.codec import Codec
from abkt.spec import ModelSpec
from experiments.quality.measure import Bench
from experiments.quality.methods import Cuts, Held, seen
from experiments.quality.samples import QualitySample

NOISE = 0.05  # squared error / squared deviation, about as much as 2 to 3 bits leave
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
BITS = (1.0, 2.0, 3.0)  # rates in bits per value at which importance matters
FLOOR = 0.05  # least sensitivity of a head, as a share of the mean


def passes(model: ModelSpec, samples: int) -> int:
    """How many continuations are scored, each of which `calibrate` reports."""
    return samples * (model.layers * model.kv_kinds * model.kv_heads + len(GAMMAS) * len(BITS))


def calibrate(bench: Bench, codec: Codec, samples: Sequence[QualitySample], done: Callable[[int], None]) -> Calibration:
    """Calibrate on prompts like those that will be served. done: called with the number of continuations that were just scored."""
    model = codec.layout.model
    shape = (model.layers, model.kv_kinds, model.kv_heads)
    moved, levels = np.zeros(shape), []
    for sample in samples:
        moved += sensitivity(bench, sample, done)
        stream = codec.encode(bench.engine.pool, bench.sent, len(sample.prompt), coder="entropy")
        if stream.header.levels.size:
            levels.append(stream.header.levels.reshape(*shape[:2], -1)[..., :: max(1, stream.header.cells.shape[2] // model.kv_heads)])
    relative = np.maximum(moved / max(moved.mean(), 1e-30), FLOOR)
    settled = np.median(levels, axis=0).astype(np.uint8)
    made = {"prompts": str(len(samples)), "kinds": ", ".join(sorted({s.kind for s in samples})), "noise": str(NOISE)}
    trials = {gamma: Cuts("trial", codec, seen(Calibration(model.name, gamma, relative, settled))) for gamma in GAMMAS}
    found = [rises(bench, sample, trials, done) for sample in samples]
    mean = {gamma: float(np.mean([value for of in found for value in of[gamma]])) for gamma in GAMMAS}
    gamma = min(mean, key=lambda g: (mean[g], g))
    made |= {"rise in nll by gamma": ", ".join(f"{g}: {r:.4f}" for g, r in mean.items())}
    return Calibration(model.name, gamma, relative, settled, made)


def sensitivity(bench: Bench, sample: QualitySample, done: Callable[[int], None] = lambda count: None) -> np.ndarray:
    """[layers, kinds, kv_heads]: divergence of the logits for noise of NOISE in one head's K or V, divided by NOISE."""
    held = bench.prefill(sample)
    model, data = held.pool.layout.model, held.pool.data
    reference = bench.logits(sample, [(0, _copy(held, bench.sent))]).log_softmax(-1)
    found = np.zeros((model.layers, model.kv_kinds, model.kv_heads))
    blocks = held.pool.layout.blocks_for(held.tokens)
    places, rows = list(np.ndindex(found.shape)), bench.rows_for(sample)
    for start in range(0, len(places), rows):
        heads = places[start : start + rows]
        for table, (layer, kind, head) in zip(bench.tables, heads, strict=False):
            x = held.pool.read(bench.sent, layer, held.tokens)[kind][head].double()
            deviation = (x - x.mean(0)).square().mean().sqrt()
            generator = torch.Generator().manual_seed(layer * 1000 + kind * 100 + head)
            size = (blocks, held.pool.layout.block_tokens, model.head_dim)
            noise = torch.randn(size, generator=generator) * float(deviation) * NOISE**0.5
            data[table] = data[bench.sent]
            data[table[:blocks], layer, kind, head] += noise.to(data.dtype)
        for place, logits in zip(heads, bench.logits_of(sample, len(heads)), strict=True):
            moved = F.kl_div(logits.log_softmax(-1), reference, reduction="none", log_target=True).sum(-1).mean()
            found[place] = float(moved) / NOISE
        done(len(heads))
    return found


def rises(bench: Bench, sample: QualitySample, trials: dict[float, Cuts], done: Callable[[int], None]) -> dict[float, list[float]]:
    """For each trial, the rise in negative log-likelihood at each of BITS, with its weights."""
    held = bench.prefill(sample)
    answers, target = torch.tensor(sample.answers[1:]), torch.tensor(sample.continuation[1:])

    def nll(put: Callable[[list[int]], object]) -> float:
        logits = bench.logits(sample, [(0, put)]).log_softmax(-1)
        return float(-logits[answers, target[answers]].mean())

    def of(method: Cuts) -> Iterator[float]:
        stream = method.stream(held)
        for bits in BITS:
            cut = stream.slope.cut_within(stream.uniform.bytes[stream.uniform.cut_of_bits(bits)])
            yield nll(partial(method.codec.expand, stream.prefix(cut), held.pool)) - raw
            done(1)

    raw = nll(_copy(held, bench.sent))
    return {gamma: list(of(method)) for gamma, method in trials.items()}


def _copy(held: Held, source: list[int]) -> Callable[[list[int]], None]:
    def put(table: list[int]) -> None:
        held.pool.data[table] = held.pool.data[source]

    return put

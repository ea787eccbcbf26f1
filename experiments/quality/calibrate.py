"""A model's calibration: how much an error in each head changes the answers, how much weight the last queries get, and which heads are
coded as differences of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from abkt.codec.calibration import Calibration
from abkt.codec.codec import Codec
from experiments.quality.measure import Bench
from experiments.quality.methods import Cuts, Held, seen
from experiments.quality.samples import QualitySample

NOISE = 0.05  # squared error / squared deviation, about as much as 2 to 3 bits leave
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
BITS = (1.0, 2.0, 3.0)  # rates in bits per value at which importance matters
FLOOR = 0.05  # least sensitivity of a head, as a share of the mean


def calibrate(bench: Bench, codec: Codec, samples: Sequence[QualitySample], step: Callable[[str], None]) -> Calibration:
    """Calibrate on prompts like those that will be served. step: called with the name of each step."""
    model = codec.layout.model
    shape = (model.layers, model.kv_kinds, model.kv_heads)
    moved, levels = np.zeros(shape), []
    for sample in samples:
        step("sensitivity")
        moved += sensitivity(bench, sample)
        stream = codec.encode(bench.engine.pool, bench.sent, len(sample.prompt), coder="entropy")
        if stream.header.levels.size:
            levels.append(stream.header.levels.reshape(*shape[:2], -1)[..., :: max(1, stream.header.cells.shape[2] // model.kv_heads)])
    relative = np.maximum(moved / max(moved.mean(), 1e-30), FLOOR)
    settled = np.median(levels, axis=0).astype(np.uint8)
    made = {"prompts": str(len(samples)), "kinds": ", ".join(sorted({s.kind for s in samples})), "noise": str(NOISE)}
    rises = {}
    for gamma in GAMMAS:
        step(f"gamma {gamma}")
        rises[gamma] = rise(bench, codec, samples, Calibration(model.name, gamma, relative, settled))
    gamma = min(rises, key=lambda g: (rises[g], g))
    made |= {"rise in nll by gamma": ", ".join(f"{g}: {r:.4f}" for g, r in rises.items())}
    return Calibration(model.name, gamma, relative, settled, made)


def sensitivity(bench: Bench, sample: QualitySample) -> np.ndarray:
    """[layers, kinds, kv_heads]: divergence of the logits for noise of NOISE in one head's K or V, divided by NOISE."""
    held = bench.prefill(sample)
    model, data = held.pool.layout.model, held.pool.data
    reference = bench.logits(sample, [(0, _copy(held, bench.sent))]).log_softmax(-1)
    found = np.zeros((model.layers, model.kv_kinds, model.kv_heads))
    blocks = held.pool.layout.blocks_for(held.tokens)
    for layer, kind, head in np.ndindex(found.shape):
        x = held.pool.read(bench.sent, layer, held.tokens)[kind][head].double()
        deviation = (x - x.mean(0)).square().mean().sqrt()
        generator = torch.Generator().manual_seed(layer * 1000 + kind * 100 + head)
        size = (blocks, held.pool.layout.block_tokens, model.head_dim)
        noise = torch.randn(size, generator=generator) * float(deviation) * NOISE**0.5

        def put(table: list[int], layer: int = layer, kind: int = kind, head: int = head, noise: torch.Tensor = noise) -> None:
            data[table] = data[bench.sent]
            data[table[:blocks], layer, kind, head] += noise.to(data.dtype)

        logits = bench.logits(sample, [(0, put)]).log_softmax(-1)
        found[layer, kind, head] = float(F.kl_div(logits, reference, reduction="none", log_target=True).sum(-1).mean()) / NOISE
    return found


def rise(bench: Bench, codec: Codec, samples: Sequence[QualitySample], calibration: Calibration) -> float:
    """Mean rise in negative log-likelihood over samples and BITS, with the weights of this calibration."""
    method = Cuts("trial", codec, seen(calibration))
    return float(np.mean([value for sample in samples for value in _rises(bench, sample, method)]))


def _rises(bench: Bench, sample: QualitySample, method: Cuts) -> Iterator[float]:
    held = bench.prefill(sample)
    answers, target = torch.tensor(sample.answers[1:]), torch.tensor(sample.continuation[1:])

    def nll(put: Callable[[list[int]], object]) -> float:
        logits = bench.logits(sample, [(0, put)]).log_softmax(-1)
        return float(-logits[answers, target[answers]].mean())

    raw, stream = nll(_copy(held, bench.sent)), method.stream(held)
    for bits in BITS:
        cut = stream.slope.cut_within(stream.uniform.bytes[stream.uniform.cut_of_bits(bits)])
        data = stream.prefix(cut)
        yield nll(partial(method.codec.expand, data, held.pool)) - raw


def _copy(held: Held, source: list[int]) -> Callable[[list[int]], None]:
    def put(table: list[int]) -> None:
        held.pool.data[table] = held.pool.data[source]

    return put

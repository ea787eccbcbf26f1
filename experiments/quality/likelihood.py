"""How much the likelihood of what follows depends on each cached K and V: the empirical Fisher metric, by one backward pass a draw.

A continuation is run over the cached KV of a prompt, an answer is drawn from the model at each of its tokens, and the gradient of the drawn
answers' log-likelihood is taken with respect to K (without its rotation) and V. The mean of its outer product over tokens and draws is the
Fisher metric of a head, and half the squared error in it is the divergence of the answers, to second order. Each layer's gradient is added
up and dropped before the next layer's is made.

Where a model cannot be differentiated (quantised weights), `probed` measures one number a head instead: the divergence by noise in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from abkt.codec.klt.basis import FIRST_TOKENS
from abkt.codec.klt.rotary import AS_CACHED, HALVES, PAIRS, Rotary
from abkt.codec.klt.weights import HIDDEN, QUARTERS, bounded, group_classes, scale_of, token_classes
from experiments.quality.measure import Bench
from experiments.quality.samples import QualitySample

DRAWS = 2
SHIFT, SHIFTED_TOKENS, LIKE = 17, 24, 0.05
NOISE = 0.05  # squared error over squared deviation of a probe

Choice = tuple[tuple[float, float], str]  # (exponent, mixing), name of groups


@dataclass(slots=True)
class Statistics:
    """Sums over prompts, [layers, 2, kv_heads, ...] float64, of tokens after the first FIRST_TOKENS.

    groups: candidates for the heads that are transformed together, by name (groups.py). metric, covariance: for each (exponent, mixing) and
    candidate, of each group [n, n]: outer products of the gradient over its tokens' scales; and of x about its prompt's mean, each head
    scaled by its token classes over the group's. variance: of x about its prompt's mean. mean. squared: [FIRST_TOKENS], squared gradients
    of the first tokens. scaled: for each (exponent, mixing), squared gradients of the others over their squared scale, mean over tokens.
    prompts, draws: how many were added.
    """

    groups: dict[str, np.ndarray]
    metric: dict[Choice, list[torch.Tensor]]
    covariance: dict[Choice, list[torch.Tensor]]
    variance: torch.Tensor
    mean: torch.Tensor
    squared: torch.Tensor
    scaled: dict[tuple[float, float], torch.Tensor]
    prompts: int = 0
    draws: int = 0


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """The model with an attention that can be differentiated, over transformers' own cache."""
    was = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(was)


def rotary_of(bench: Bench, tokens: Sequence[int]) -> tuple[Rotary, np.ndarray]:
    """How each layer rotates K, and the relative error of that: found by moving the same tokens to other positions.

    The frequencies are those of the model's rotary modules. A layer that none of them explains is AS_CACHED.
    """
    from transformers import DynamicCache

    model, spec = bench.engine.model, bench.engine.layout.model
    ids = torch.tensor([list(tokens[:SHIFTED_TOKENS])], device=bench.engine.device)
    found = []
    with plain_attention(model), torch.no_grad():
        for start in (0, SHIFT):
            cache: Any = DynamicCache()
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
            model(input_ids=ids, position_ids=positions, past_key_values=cache, logits_to_keep=1)
            found.append([layer.keys[0].float().cpu() for layer in cache.layers])
    buffers = {tuple(b.flatten().tolist()): b.float().cpu().flatten() for name, b in model.named_buffers() if name.endswith("inv_freq")}
    width = max((len(b) for b in buffers.values()), default=0)
    styles, frequencies, errors = [], torch.zeros(spec.layers, width), []
    for layer, (a, b) in enumerate(zip(*found, strict=True)):
        tried = [(float((a - b).norm() / a.norm()), AS_CACHED, torch.zeros(width))]
        for buffer in buffers.values():
            if 2 * len(buffer) > spec.head_dim or len(buffer) != width:
                continue
            for style in (HALVES, PAIRS):
                one = Rotary(torch.tensor([style], dtype=torch.uint8), buffer[None])
                off = (one.turned(a, 0, back=True) - one.turned(b, 0, back=True, first=SHIFT)).norm() / a.norm()
                tried.append((float(off), style, buffer))
        error, style, buffer = min(tried, key=lambda each: each[0])
        if error > LIKE:
            style, buffer = AS_CACHED, torch.zeros(width)
        styles.append(style)
        errors.append(error)
        frequencies[layer] = buffer
    return Rotary(torch.tensor(styles, dtype=torch.uint8), frequencies), np.array(errors)


def kv_of(bench: Bench, tokens: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = bench.engine.pool.read(bench.sent, layer, tokens)
    return keys, values


def empty(bench: Bench, settings: Sequence[tuple[float, float]], groups: Mapping[str, np.ndarray]) -> Statistics:
    model = bench.engine.layout.model
    shape = (model.layers, 2, model.kv_heads)

    def zeros(*more: int) -> torch.Tensor:
        return torch.zeros(*shape, *more, dtype=torch.float64)

    sizes = {name: np.bincount(of.ravel()) * model.head_dim for name, of in groups.items()}

    def squares() -> dict[Choice, list[torch.Tensor]]:
        return {(s, name): [torch.zeros(n, n, dtype=torch.float64) for n in of] for s in settings for name, of in sizes.items()}

    per_channel = zeros(model.head_dim), zeros(model.head_dim)
    return Statistics(dict(groups), squares(), squares(), *per_channel, zeros(FIRST_TOKENS), {s: zeros() for s in settings})


def add_prompt(found: Statistics, bench: Bench, sample: QualitySample, rotary: Rotary, differentiable: bool = True) -> None:
    """Prefill a prompt and add what it shows. Raises RuntimeError where the model cannot be differentiated."""
    held = bench.prefill(sample)
    tokens, layers = held.tokens, held.pool.layout.model.layers
    importance = held.importance.tokens(held.pool, held.table, tokens).numpy()
    nothing = np.full((*importance.shape[1:3], FIRST_TOKENS), -100)
    alone = {s: np.stack([token_classes(importance[layer], *s, nothing) for layer in range(layers)]) for s in found.scaled}
    members = {name: [np.argwhere(of == number) for number in range(int(of.max()) + 1)] for name, of in found.groups.items()}
    classes = {choice: bounded(alone[choice[0]], members[choice[1]]) for choice in found.metric}
    kv = [kv_of(bench, tokens, layer) for layer in range(layers)]
    about = torch.empty(*importance.shape[:3], tokens - FIRST_TOKENS, found.mean.shape[-1])
    for layer, (keys, values) in enumerate(kv):
        x = torch.stack((rotary.turned(keys.float().cpu(), layer, back=True), values.float().cpu()))[..., FIRST_TOKENS:, :].double()
        mean = x.mean(-2, keepdim=True)
        found.mean[layer] += mean[..., 0, :]
        about[layer] = x - mean
        found.variance[layer] += (x - mean).square().mean(-2)
    for choice, sums in found.covariance.items():
        for number, total in enumerate(sums):
            of = tuple(members[choice[1]][number].T)
            own = classes[choice][of][:, FIRST_TOKENS:]
            relative = torch.from_numpy(scale_of(own) / np.exp2(np.maximum(group_classes(own), QUARTERS * HIDDEN) / 4)).float()
            total += _squared(about[of] * relative[..., None])
    found.prompts += 1
    if not differentiable:
        return

    def add(layer: int, kind: int, gradient: torch.Tensor) -> None:
        g = rotary.turned(gradient, layer, back=True) if kind == 0 else gradient
        found.squared[layer, kind] += g[:, :FIRST_TOKENS].double().square().sum(-1)
        for setting, own in alone.items():
            g1 = (g / torch.from_numpy(scale_of(own[layer, kind]))[..., None])[:, FIRST_TOKENS:]
            found.scaled[setting][layer, kind] += g1.double().square().sum(-1).mean(-1)
        about[layer, kind] = g[:, FIRST_TOKENS:]
        waiting.discard((layer, kind))
        for (setting, name), sums in found.metric.items():
            for number in np.unique(found.groups[name][layer, kind]).tolist():
                of = tuple(members[name][number].T)
                if not waiting & set(zip(of[0].tolist(), of[1].tolist(), strict=True)):
                    scale = torch.from_numpy(scale_of(classes[setting, name][of]))[:, FIRST_TOKENS:, None]
                    sums[number] += _squared(about[of] / scale)

    waiting: set[tuple[int, ...]] = set()
    for draw in range(DRAWS):
        waiting.update(np.ndindex(layers, 2))
        gradients(bench, sample, kv, found.prompts * DRAWS + draw, add)
        found.draws += 1


def _squared(x: torch.Tensor) -> torch.Tensor:
    """Outer products of [heads, tokens, head_dim], mean over the tokens: [n, n] float64."""
    y = x.transpose(0, 1).flatten(1)
    return (y.mT @ y / len(y)).double()


def gradients(
    bench: Bench,
    sample: QualitySample,
    kv: Sequence[tuple[torch.Tensor, torch.Tensor]],
    seed: int,
    add: Callable[[int, int, torch.Tensor], None],
) -> None:
    """Call add(layer, kind, gradient [kv_heads, tokens, head_dim] float32) with the gradient of one draw's log-likelihood, from the last
    layer to the first; each is freed before the next is made."""
    from transformers import DynamicCache

    model, device = bench.engine.model, bench.engine.device

    def keep(layer: int, kind: int) -> Callable[[torch.Tensor], None]:
        def take(leaf: torch.Tensor) -> None:
            assert leaf.grad is not None
            add(layer, kind, leaf.grad[0].float().cpu())
            leaf.grad = None

        return take

    with plain_attention(model), torch.enable_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        cache: Any = DynamicCache()
        for layer, pair in enumerate(kv):
            leaves = [part[None].to(model.dtype).to(device).clone().requires_grad_(True) for part in pair]
            for kind, leaf in enumerate(leaves):
                leaf.register_post_accumulate_grad_hook(keep(layer, kind))
            cache.update(*leaves, layer)
        logits = model(input_ids=torch.tensor([list(sample.continuation)], device=device), past_key_values=cache).logits.float()
        log = logits.log_softmax(-1)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(log.detach()[0].exp().cpu(), 1, generator=generator).to(device)
        (-log[0].gather(-1, drawn).sum()).backward()


def probed(bench: Bench, sample: QualitySample, done: Callable[[int], None] = lambda count: None) -> np.ndarray:
    """[layers, 2, kv_heads]: divergence of the logits (nats a token) for noise in one head's K or V of NOISE times its squared deviation,
    over NOISE. The first block, where attention sinks lie, is spared: noise in it would say more of the sinks than of the head."""
    held = bench.prefill(sample)
    model, data = held.pool.layout.model, held.pool.data
    size = held.pool.layout.block_tokens

    def copy(table: list[int]) -> None:
        data[table] = data[bench.sent]

    reference = bench.logits(sample, [(0, copy)]).log_softmax(-1)
    found = np.zeros((model.layers, model.kv_kinds, model.kv_heads))
    blocks = held.pool.layout.blocks_for(held.tokens)
    places, rows = list(np.ndindex(found.shape)), bench.rows_for(sample)
    for start in range(0, len(places), rows):
        heads = places[start : start + rows]
        for table, (layer, kind, head) in zip(bench.tables, heads, strict=False):
            x = held.pool.read(bench.sent, layer, held.tokens)[kind][head, size:].double()
            deviation = (x - x.mean(0)).square().mean().sqrt()
            generator = torch.Generator().manual_seed(layer * 1000 + kind * 100 + head)
            noise = torch.randn((blocks - 1, size, model.head_dim), generator=generator) * float(deviation) * NOISE**0.5
            data[table] = data[bench.sent]
            data[table[1:blocks], layer, kind, head] += noise.to(data)
        for place, logits in zip(heads, bench.logits_of(sample, len(heads)), strict=True):
            moved = F.kl_div(logits.log_softmax(-1), reference, reduction="none", log_target=True).sum(-1).mean()
            found[place] = float(moved) / NOISE
        done(len(heads))
    return found


def from_probes(found: Statistics, bench: Bench, samples: Sequence[QualitySample]) -> None:
    """Fill the metric of every setting with one number a head (times the unit matrix), as measured by `probed`.

    The first tokens get the finest class that there is, because nothing was measured of them. The exponent was not measured either, so all
    settings have the same metric.
    """
    moved = np.maximum(np.mean([probed(bench, sample) for sample in samples], axis=0), 1e-9)
    tokens, after = len(samples[0].prompt), len(samples[0].continuation)
    dim, variance = found.mean.shape[-1], (found.variance / found.prompts).mean(-1).clamp_min(1e-30)
    level = torch.from_numpy(moved) * 2 * after / tokens / variance / dim
    for (_, name), metrics in found.metric.items():
        for number, metric in enumerate(metrics):
            metric.copy_(level[np.nonzero(found.groups[name] == number)].repeat_interleave(dim).diag())
    for scaled in found.scaled.values():
        scaled.copy_(level * dim)
    found.squared.copy_(level[..., None].expand_as(found.squared) * dim * 2.0**16)
    found.draws = 1

"""The kernels of one GPU as smooth rooflines, fitted to published tables, and the work that each of them does.

    seconds = launch + ((flops / F)^p + (bytes / B)^p)^(1/p) + activation bytes / A
`abkt fit-hardware` fits the coefficients to the kernel tables of aiconfigurator (Apache-2.0). Attention of a decode step costs
    launch + KV bytes / B + requests x KV heads x head_s.
Rows whose weights or KV fit into the GPU's L2 cache are left out of a fit: a table repeats one kernel, but a running model never finds its
layer's weights in the cache.

Not modelled: overlap of communication and compute; other kernels for small or odd shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from abkt.ranges import bound
from abkt.spec import ModelSpec

Number = Any  # a number or an array of them
ANY = "any"  # key of the fit of a kernel for all shapes of experts
ROUTING_SKEW = 30.0  # assignments of the most popular expert over those of the least popular; fitted to measured servers (docs)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel as a smooth roofline.

    sharpness: p of the formula. activation_bytes_per_s: A of the formula, the rate at which the kernel reads and writes activations; for
    latent attention in a decode step, requests x heads per second. error: mean relative error on the rows held out of the fit. rows: the
    number of those rows.
    """

    launch_s: float
    flops: float
    bytes_per_s: float
    sharpness: float
    activation_bytes_per_s: float
    error: float
    rows: int

    def __post_init__(self) -> None:
        bound(self, "launch_s", "error", "rows", least=0)
        bound(self, "flops", "bytes_per_s", "activation_bytes_per_s", above=0, infinite=True)
        bound(self, "sharpness", above=0)

    def seconds(self, flops: float, read_bytes: float, activation_bytes: float = 0.0) -> float:
        compute_s, memory_s, p = flops / self.flops, read_bytes / self.bytes_per_s, self.sharpness
        return self.launch_s + (compute_s**p + memory_s**p) ** (1 / p) + activation_bytes / self.activation_bytes_per_s


@dataclass(frozen=True, slots=True)
class DecodeKernel:
    """Attention of one decode step. head_s: seconds for each request and KV head."""

    launch_s: float
    bytes_per_s: float
    head_s: float
    error: float
    rows: int

    def __post_init__(self) -> None:
        bound(self, "launch_s", "head_s", "error", "rows", least=0)
        bound(self, "bytes_per_s", above=0, infinite=True)

    def seconds(self, kv_bytes: float, heads: float) -> float:
        return self.launch_s + kv_bytes / self.bytes_per_s + heads * self.head_s


@dataclass(frozen=True, slots=True)
class Collective:
    """One call that all GPUs of an instance take part in, for x bytes of tensor on each GPU: launch + x / bandwidth + ramp x / (x + half).

    ramp_s, ramp_bytes: seconds by which a large call is later than launch and bandwidth say, and the size at which it is half of that.
    """

    launch_s: float
    bytes_per_s: float
    ramp_s: float
    ramp_bytes: float
    error: float
    rows: int

    def __post_init__(self) -> None:
        bound(self, "launch_s", "ramp_s", "error", "rows", least=0)
        bound(self, "bytes_per_s", "ramp_bytes", above=0, infinite=True)

    def seconds(self, tensor_bytes: float) -> float:
        return self.launch_s + tensor_bytes / self.bytes_per_s + self.ramp_s * tensor_bytes / (tensor_bytes + self.ramp_bytes)


@dataclass(frozen=True)
class GpuKernels:
    """The fitted kernels of one GPU under one engine.

    gemm: by type of the weights. prefill_attention, decode_attention: by `attention_key`. latent_prefill, latent_decode: by `latent_key`;
    each is a whole attention layer of DeepSeek-V3, its projections included. all_reduce, all_to_all: by the number of GPUs. experts: by
    `experts_key`, and by `ANY` and the type for shapes that have no fit of their own.
    """

    source: str
    gemm: dict[str, Kernel]
    prefill_attention: dict[str, Kernel]
    decode_attention: dict[str, DecodeKernel]
    latent_prefill: dict[str, Kernel] = field(default_factory=dict)
    latent_decode: dict[str, Kernel] = field(default_factory=dict)
    all_reduce: dict[int, Collective] = field(default_factory=dict)
    all_to_all: dict[int, Collective] = field(default_factory=dict)
    experts: dict[str, Kernel] = field(default_factory=dict)


def attention_key(head_dim: int, dtype: str) -> str:
    """dtype: of the KV."""
    return f"{head_dim}_{dtype}"


def latent_key(weights: str, dtype: str) -> str:
    """weights, dtype: types of the weights and of the KV. Both kinds of FP8 weights count as one."""
    return f"{'fp8' if weights in ('float8_e4m3fn', 'fp8_block') else weights}_{dtype}"


def experts_key(model: ModelSpec) -> str:
    """The key of a model's experts in GpuKernels.experts."""
    return f"{model.hidden}x{model.expert_inner}x{model.experts}x{model.experts_active}_{model.expert_weights}"


@lru_cache(maxsize=1 << 14)
def touched_experts(experts: float, active: float, tokens: float, skew: float = ROUTING_SKEW) -> float:
    """Expected number of experts of a layer that at least one of `tokens` tokens chooses.

    The logarithms of the experts' popularities are spaced evenly, so that the most popular one is chosen `skew` times as often as the least
    popular one. With skew 1 every expert is chosen by a token with probability active / experts.
    """
    count = int(experts)
    if skew == 1.0 or count < 2:
        return experts * (1 - (1 - min(1.0, active / experts)) ** tokens)
    weights = [skew ** (i / (count - 1)) for i in range(count)]
    scale = active / sum(weights)
    return sum(1 - max(0.0, 1 - scale * weight) ** tokens for weight in weights)


def imbalance(experts: float, ranks: int, skew: float = ROUTING_SKEW) -> float:
    """Work of the busiest of `ranks` GPUs that share the experts at random, over their mean.

    The sum of experts / ranks popularities varies by their coefficient of variation over the square root of that number; the largest of n
    normal draws lies about sqrt(2 ln n) standard deviations above the mean.
    """
    if ranks < 2 or skew == 1.0:
        return 1.0
    log = math.log(skew)
    mean, square = (skew - 1) / log, (skew**2 - 1) / (2 * log)
    variation = math.sqrt(square / mean**2 - 1)
    share = experts / ranks
    drawn = (experts - share) / (experts - 1)  # drawn without replacement
    return 1 + variation * math.sqrt(drawn / share) * math.sqrt(2 * math.log(ranks))


def expert_work(
    hidden: Number, inner: Number, touched: Number, active: Number, tokens: Number, weight_bytes: float
) -> tuple[Number, Number, Number]:
    """(flops, bytes of the `touched` experts that some token chooses, activation bytes) of one layer."""
    return 6 * tokens * active * hidden * inner, 3 * touched * hidden * inner * weight_bytes, 2 * tokens * active * hidden


def latent_projections(hidden: float, heads: float, query_latent: float, latent: float, key: float, value: float) -> float:
    """Weights of a latent attention layer on one GPU: down-projections, which every GPU holds whole, and `heads` heads of the rest.

    latent: values of one token's latent, 64 of them positional.
    """
    down = hidden * (query_latent + latent)
    return down + heads * (query_latent * key + (latent - 64) * (key - 64 + value) + value * hidden)


def latent_decode_work(
    weights: float, weight_bytes: float, heads: float, requests: float, context: float, latent: float, kv_bytes: float
) -> tuple[float, float, float]:
    """(flops, bytes, requests x heads) of a layer's decode step. Each head reads the latent itself (DeepSeek-V2, section 2.1)."""
    flops = 2 * requests * weights + 2 * context * heads * (2 * latent - 64)
    return flops, weights * weight_bytes + context * latent * kv_bytes, requests * heads


def latent_prefill_work(
    weights: float, weight_bytes: float, heads: float, tokens: float, pairs: float, key: float, value: float
) -> tuple[float, float, float]:
    """(flops, bytes, activation bytes) of a layer over prompt tokens with `pairs` query-key pairs."""
    return 2 * tokens * weights + 2 * heads * (key + value) * pairs, weights * weight_bytes, 4 * tokens * heads * (key + value)

"""Seconds of one pass of a model over the GPUs of an instance, as a sum of its kernels, and that sum as the fits of a Profile.

pass = overhead + layers x (layer overhead + attention + MLP or experts + collectives + elementwise) + lm_head
Experts are read once in a pass, however many prompts and decoding requests it has, and only those that some token chooses. `gpus` GPUs hold
one instance. Attention is tensor parallel over gpus / attention_data_parallel of them, and the requests are spread over the groups. Experts
are split over expert_parallel groups, each of which cuts its experts over gpus / expert_parallel GPUs; the busiest group sets the time. An
all-reduce follows attention and MLP; with attention data parallelism, an all-to-all sends tokens to their experts and another brings them
back.

Not modelled: overlap of communication and compute, pipeline parallelism, experts that are copied to spread the load.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from abkt.profile.kernels import (
    ANY,
    ROUTING_SKEW,
    Collective,
    GpuKernels,
    Kernel,
    attention_key,
    expert_work,
    experts_key,
    imbalance,
    latent_decode_work,
    latent_key,
    latent_prefill_work,
    latent_projections,
    touched_experts,
)
from abkt.profile.schema import Fit
from abkt.ranges import bound
from abkt.spec import KV_BYTES, WEIGHT_BYTES, ModelSpec

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PROMPTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
PASSES = (1, 2, 4, 8, *PROMPTS)
CONTEXTS = (1, 128, 512, 2048, 8192, 32768)  # tokens per request
NEAR, FAR = 512, 32768  # tokens per request; the slope is taken between these two


@dataclass(frozen=True, slots=True)
class Parallel:
    """How the GPUs of an instance share a model; see this module's docstring."""

    gpus: int = 1
    expert_parallel: int = 1
    attention_data_parallel: int = 1

    def __post_init__(self) -> None:
        bound(self, "gpus", "expert_parallel", "attention_data_parallel", least=1, most=100_000)
        for name in ("expert_parallel", "attention_data_parallel"):
            if self.gpus % getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)}; it must divide the number of GPUs, {self.gpus}")

    @property
    def attention_gpus(self) -> int:
        return self.gpus // self.attention_data_parallel


class PassCosts(ABC):
    """Seconds of a pass, and its fits."""

    model: ModelSpec
    overhead_s: float

    @abstractmethod
    def iteration_s(self, batch: int, context: float, chunk: int = 0, before: int = 0) -> float:
        """Seconds of one pass: `batch` decoding requests with `context` tokens of KV in total, and `chunk` prompt tokens after `before`."""

    @abstractmethod
    def pass_s(self, tokens: float) -> float:
        """Seconds of what a pass does for its tokens together: all but attention, the lm_head and the requests' overhead."""

    @property
    def error(self) -> float:
        return 0.0

    @property
    def measured(self) -> bool:
        """Whether anything of it was measured. What comes from a data sheet alone has no known error, and no range in which it was seen."""
        return True

    def fits(self) -> dict[str, Fit]:
        return {"prefill": self.prefill_fit(), "decode": self.decode_fit(), "pass": self.pass_fit()}

    def decode_fit(self) -> Fit:
        """Seconds of a decode iteration: piecewise linear in the batch, linear in the context. The residual includes the kernels' own
        error."""
        slope = (self.iteration_s(64, 64 * FAR) - self.iteration_s(64, 64 * NEAR)) / (64 * (FAR - NEAR))
        terms = _pieces("batch", [(b, self.iteration_s(b, b * NEAR) - slope * b * NEAR) for b in BATCHES])
        points = [(b, b * c) for b in (*BATCHES, 3, 12, 48, 96, 200) for c in CONTEXTS]
        return self._fit(
            {**terms, "context": slope}, [({"batch": float(b), "context": float(c)}, self.iteration_s(b, c)) for b, c in points]
        )

    def prefill_fit(self) -> Fit:
        """Seconds of a prompt in one pass: piecewise linear in its tokens, plus a square term from the three longest."""
        prompts = [n for n in PROMPTS if n <= self.model.max_tokens]
        seconds = {n: self.iteration_s(0, 0.0, n) for n in prompts}
        a, b, c = prompts[-3:]
        square = ((seconds[c] - seconds[b]) / (c - b) - (seconds[b] - seconds[a]) / (b - a)) / (c - a)
        terms = _pieces("tokens", [(n, seconds[n] - square * n * n) for n in prompts])
        points = [*prompts, *((a + b) // 2 for a, b in pairwise(prompts))]
        return self._fit({**terms, "tokens*tokens": square}, [({"tokens": float(n)}, self.iteration_s(0, 0.0, n)) for n in points])

    def pass_fit(self) -> Fit:
        """Seconds of `pass_s`, piecewise linear in the tokens."""
        points = [n for n in PASSES if n <= self.model.max_tokens]
        terms = _pieces("tokens", [(n, self.pass_s(n)) for n in points])
        between = [*points, *(math.isqrt(a * b) for a, b in pairwise(points))]
        return self._fit(terms, [({"tokens": float(n)}, self.pass_s(n)) for n in between])

    def _fit(self, terms: dict[str, float], samples: list[tuple[dict[str, float], float]]) -> Fit:
        names = samples[0][0]
        low = {name: min(at[name] for at, _ in samples) for name in names}
        high = {name: max(at[name] for at, _ in samples) for name in names}
        if not self.measured:
            return Fit(tuple(terms), tuple(terms.values()), {}, {}, 0.0, 0)
        made = Fit(tuple(terms), tuple(terms.values()), low, high, 0.0, len(samples))
        square = sum((made.seconds(**at) / seconds - 1) ** 2 for at, seconds in samples) / len(samples)
        return replace(made, residual=math.hypot(math.sqrt(square), self.error))


@dataclass(frozen=True)
class ModelCosts(PassCosts):
    """A model on kernels. memory_bytes_per_s: memory bandwidth of one GPU, for elementwise kernels. overhead_s, layer_s, request_s: seconds
    besides the kernels, of each pass, layer and request. routing_skew: see abkt.profile.kernels.touched_experts.

    Raises ValueError, one line, if the tables have no kernel of a needed shape.
    """

    model: ModelSpec
    kernels: GpuKernels
    parallel: Parallel
    memory_bytes_per_s: float
    overhead_s: float = 0.0
    layer_s: float = 0.0
    request_s: float = 0.0
    routing_skew: float = ROUTING_SKEW

    def __post_init__(self) -> None:
        m, k = self.model, self.kernels
        if min(m.hidden, m.heads, m.vocabulary) < 1 or not (m.inner or m.experts):
            raise ValueError(f"model {m.name} needs hidden, heads, inner (or experts) and vocabulary for costs from kernels")
        wanted: list[tuple[str, dict[str, Any], str]] = [("GEMM of weights in", k.gemm, m.weights)]
        if m.kv_kinds == 1:
            latent = latent_key(m.weights, m.dtype)
            wanted += [("latent attention of", k.latent_prefill, latent), ("latent attention of", k.latent_decode, latent)]
        else:
            attention = attention_key(m.head_dim, m.dtype)
            wanted += [("attention of", k.prefill_attention, attention), ("attention of", k.decode_attention, attention)]
        for name, table, key in wanted:
            if key not in table:
                raise ValueError(f"the kernels of {k.source} have no {name} {key}; use a roofline: hardware.kernels=null")
        if m.experts:
            self._expert_kernel()
        if self.parallel.gpus > 1 and not k.all_reduce:
            raise ValueError(f"the kernels of {k.source} have no all-reduce; use gpus=1 or a roofline: hardware.kernels=null")
        if m.experts and self.parallel.attention_data_parallel > 1 and not k.all_to_all:
            raise ValueError(f"the kernels of {k.source} have no all-to-all; use attention_data_parallel=1 or hardware.kernels=null")

    def iteration_s(self, batch: int, context: float, chunk: int = 0, before: int = 0) -> float:
        ranks, model = self.parallel.attention_data_parallel, self.model
        attention_s = self.attention_s(batch / ranks, context / ranks, chunk / ranks, before) if batch or chunk else 0.0
        rows = batch + (1 if chunk else 0)
        return self.pass_s(batch + chunk) + self.request_s * rows + model.layers * attention_s + self.head_s(rows)

    def head_s(self, rows: float) -> float:
        """Seconds of the lm_head, which gives logits for `rows` tokens."""
        each, model = max(1.0, rows / self.parallel.attention_data_parallel), self.model
        return self._gemm_s(each, model.vocabulary / self.parallel.attention_gpus, model.hidden, model.dtype_of_head)

    def pass_s(self, tokens: float) -> float:
        model, each = self.model, tokens / self.parallel.attention_data_parallel
        layer_s = self.layer_s + self._projections_s(each) + self._all_reduce_s(each) + self._elementwise_s(each)
        dense = model.dense_layers if model.experts else model.layers
        blocks_s = dense * (self._mlp_s(each, model.inner) + self._all_reduce_s(each)) if dense else 0.0
        blocks_s += (model.layers - dense) * self._experts_s(tokens) if model.experts else 0.0
        return self.overhead_s + model.layers * layer_s + blocks_s

    # -- matrices ----------------------------------------------------------------------------------------------------------------

    def _gemm_s(self, m: float, n: float, k: float, weights: str = "") -> float:
        dtype = weights or self.model.weights
        return self.kernels.gemm[dtype].seconds(2 * m * n * k, WEIGHT_BYTES[dtype] * n * k, 2 * (m * n + m * k))

    def _mlp_s(self, tokens: float, inner: int) -> float:
        hidden, inner_each = self.model.hidden, inner / self.parallel.attention_gpus
        return self._gemm_s(tokens, 2 * inner_each, hidden) + self._gemm_s(tokens, hidden, inner_each)

    def _projections_s(self, tokens: float) -> float:
        m = self.model
        if m.kv_kinds == 1:
            return 0.0  # the latent kernels include them
        heads, kv_heads = m.heads / self.parallel.attention_gpus, max(1.0, m.kv_heads / self.parallel.attention_gpus)
        return self._gemm_s(tokens, (heads + 2 * kv_heads) * m.head_dim, m.hidden) + self._gemm_s(tokens, m.hidden, heads * m.head_dim)

    # -- experts -----------------------------------------------------------------------------------------------------------------

    def _expert_kernel(self) -> Kernel:
        known, m = self.kernels.experts, self.model
        kernel = known.get(experts_key(m)) or known.get(f"{ANY}_{m.expert_weights}")
        if kernel is None:
            raise ValueError(
                f"the kernels of {self.kernels.source} have no experts {experts_key(m)}; use a roofline: hardware.kernels=null"
            )
        return kernel

    def _experts_s(self, tokens: float) -> float:
        """Router, experts and shared experts of one layer, with what brings their results together."""
        m, groups = self.model, self.parallel.expert_parallel
        load = imbalance(m.experts, groups, self.routing_skew)
        touched = touched_experts(m.experts, m.experts_active, tokens, self.routing_skew) / groups
        inner, size = m.expert_inner * groups / self.parallel.gpus, WEIGHT_BYTES[m.expert_weights]
        work = expert_work(m.hidden, inner, touched, m.experts_active / groups, tokens * load, size)
        each = tokens / self.parallel.attention_data_parallel
        seconds = self._expert_kernel().seconds(*work) + self._gemm_s(each, m.experts, m.hidden, m.dtype_of_head)
        if m.shared_experts:
            seconds += self._mlp_s(each, m.shared_experts * m.expert_inner)
        if self.parallel.attention_data_parallel == 1:
            return seconds + self._all_reduce_s(tokens)
        return seconds + 2 * self._all_to_all_s(each)

    # -- attention ---------------------------------------------------------------------------------------------------------------

    def attention_s(self, batch: float, context: float, chunk: float, before: float) -> float:
        """Seconds of one layer's attention on each GPU, for its group's requests and prompts."""
        m = self.model
        heads = m.heads / self.parallel.attention_gpus
        if m.kv_kinds == 1:
            return self._latent_attention_s(batch, context, chunk, before, heads)
        kv_heads = max(1.0, m.kv_heads / self.parallel.attention_gpus)
        share = m.window_layers / m.layers
        full_s = self._full_attention_s(batch, context, chunk, before, heads, kv_heads)
        if not share:
            return full_s
        seen = min(context, batch * m.window)
        # A prompt in a window has chunk x window pairs instead of the triangle.
        window_s = self._full_attention_s(batch, seen, 0, 0, heads, kv_heads) if batch else 0.0
        window_s += self._prompt_s(heads, kv_heads, chunk, min(chunk * m.window, chunk * (before + chunk / 2))) if chunk else 0.0
        return (1 - share) * full_s + share * window_s

    def _full_attention_s(self, batch: float, context: float, chunk: float, before: float, heads: float, kv_heads: float) -> float:
        seconds, m = 0.0, self.model
        if batch:
            kernel = self.kernels.decode_attention[attention_key(m.head_dim, m.dtype)]
            seconds += kernel.seconds(2 * KV_BYTES[m.dtype] * context * kv_heads * m.head_dim, batch * kv_heads)
        if chunk:
            seconds += self._prompt_s(heads, kv_heads, chunk, chunk * (before + chunk / 2))
        return seconds

    def _prompt_s(self, heads: float, kv_heads: float, chunk: float, pairs: float) -> float:
        """pairs: query-key pairs of the causal mask."""
        m = self.model
        moved = chunk * m.head_dim * (4 * heads + 2 * KV_BYTES[m.dtype] * kv_heads)
        return self.kernels.prefill_attention[attention_key(m.head_dim, m.dtype)].seconds(4 * heads * m.head_dim * pairs, moved)

    def _latent_attention_s(self, batch: float, context: float, chunk: float, before: float, heads: float) -> float:
        m, k, key = self.model, self.kernels, latent_key(self.model.weights, self.model.dtype)
        weights = latent_projections(m.hidden, heads, m.query_latent, m.head_dim, m.key_dim, m.value_dim)
        size, seconds = WEIGHT_BYTES[m.weights], 0.0
        if batch:
            work = latent_decode_work(weights, size, heads, batch, context, m.head_dim, KV_BYTES[m.dtype])
            seconds += k.latent_decode[key].seconds(*work)
        if chunk:
            pairs = chunk * (before + chunk / 2)
            seconds += k.latent_prefill[key].seconds(*latent_prefill_work(weights, size, heads, chunk, pairs, m.key_dim, m.value_dim))
        if batch and chunk:  # one pass reads the projections once
            seconds -= weights * size / k.latent_decode[key].bytes_per_s
        return seconds

    # -- the rest ----------------------------------------------------------------------------------------------------------------

    def _all_reduce_s(self, tokens: float) -> float:
        gpus = self.parallel.attention_gpus
        return nearest(self.kernels.all_reduce, gpus).seconds(2 * tokens * self.model.hidden) if gpus > 1 else 0.0

    def _all_to_all_s(self, tokens: float) -> float:
        """Each token goes once to every group that has one of its experts."""
        m, groups = self.model, self.parallel.expert_parallel
        reached = groups * (1 - (1 - 1 / groups) ** m.experts_active) if groups > 1 else 1.0
        return nearest(self.kernels.all_to_all, self.parallel.gpus).seconds(2 * tokens * m.hidden * reached)

    def _elementwise_s(self, tokens: float) -> float:
        """Seconds of norms, RoPE, residuals and activation: bytes read and written at four fifths of the memory bandwidth."""
        m = self.model
        inner = m.inner if not m.experts else m.expert_inner * m.experts_active
        values = 8 * m.hidden + (2 * (m.heads + 2 * m.kv_heads) * m.head_dim + 3 * inner) / self.parallel.attention_gpus
        return 2 * tokens * values / (0.8 * self.memory_bytes_per_s)

    @property
    def error(self) -> float:
        """Relative error of the kernels that take most of a pass."""
        return max(self.kernels.gemm[self.model.weights].error, self._expert_kernel().error if self.model.experts else 0.0)


def nearest(known: dict[int, Collective], gpus: int) -> Collective:
    """The collective measured on the nearest number of GPUs."""
    return known[min(known, key=lambda count: (abs(count - gpus), count))]


def _pieces(variable: str, points: list[tuple[int, float]]) -> dict[str, float]:
    """Coefficients of straight lines between the points; the first and the last line continue outside."""
    slopes = [(after_s - before_s) / (after - before) for (before, before_s), (after, after_s) in pairwise(points)]
    terms = {"1": points[0][1] - slopes[0] * points[0][0], variable: slopes[0]}
    return terms | {f"{variable}>{knot}": after - before for (knot, _), before, after in zip(points[1:-1], slopes, slopes[1:])}

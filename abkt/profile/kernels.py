"""Iteration times of a model on a GPU, as sums of kernel costs fitted to published tables. The source of such a profile is `published`.

iteration = overhead + layers x (GEMMs + attention + all-reduces + elementwise) + lm_head
Each kernel is a smooth roofline:
    launch + ((flops / F)^p + (bytes / B)^p)^(1/p) + activation bytes / A
`abkt fit-hardware` fits the coefficients to the kernel tables of aiconfigurator (Apache-2.0). Attention of a decode step costs
    launch + KV bytes / B + requests x KV heads x head_s.
Rows whose weights or KV fit into the GPU's L2 cache are left out of a fit: a table repeats one kernel, but a running model never finds its
layer's weights in the cache. The overhead per iteration and per request comes from published servers (docs/published_servers.md).

Not modelled: overlap of communication and compute, expert parallelism, skewed experts, speculative decoding, pipeline parallelism.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

from abkt.profile.schema import Fit
from abkt.ranges import bound
from abkt.spec import WEIGHT_BYTES, ModelSpec

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PROMPTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CONTEXTS = (1, 128, 512, 2048, 8192, 32768)  # tokens per request
NEAR, FAR = 512, 32768  # tokens per request; the slope is taken between these two


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
class AllReduce:
    """One all-reduce of a tensor over the GPUs of an instance."""

    launch_s: float
    bytes_per_s: float
    error: float
    rows: int

    def __post_init__(self) -> None:
        bound(self, "launch_s", "error", "rows", least=0)
        bound(self, "bytes_per_s", above=0, infinite=True)


@dataclass(frozen=True)
class GpuKernels:
    """The fitted kernels of one GPU. Keys: head_dim for attention, the number of GPUs for all-reduces, `experts_key` for experts."""

    source: str
    gemm: Kernel
    prefill_attention: dict[int, Kernel]
    decode_attention: dict[int, DecodeKernel]
    latent_prefill: Kernel | None = None
    latent_decode: Kernel | None = None
    all_reduce: dict[int, AllReduce] = field(default_factory=dict)
    experts: dict[str, Kernel] = field(default_factory=dict)


def experts_key(model: ModelSpec) -> str:
    """The key of a model's experts in GpuKernels.experts."""
    return f"{model.hidden}x{model.expert_inner}x{model.experts}x{model.experts_active}_{model.expert_dtype}"


@dataclass(frozen=True)
class ModelCosts:
    """A model on `gpus` GPUs of one kind, tensor parallel. memory_bytes_per_s: memory bandwidth of one GPU, for elementwise kernels.

    Raises ValueError, one line, if the tables have no kernel of a needed shape.
    """

    model: ModelSpec
    kernels: GpuKernels
    gpus: int
    memory_bytes_per_s: float
    overhead_s: float = 0.0
    request_s: float = 0.0

    def __post_init__(self) -> None:
        m, k = self.model, self.kernels
        if min(m.hidden, m.heads, m.vocabulary) < 1 or not (m.inner or m.experts):
            raise ValueError(f"model {m.name} needs hidden, heads, inner (or experts) and vocabulary for costs from kernels")
        if m.kv_kinds == 1 and (k.latent_prefill is None or k.latent_decode is None):
            raise ValueError(
                f"the kernels of {k.source} have no latent attention, which model {m.name} needs; use a roofline: kernels=null"
            )
        if m.kv_kinds == 2 and (m.head_dim not in k.prefill_attention or m.head_dim not in k.decode_attention):
            raise ValueError(f"the kernels of {k.source} have no attention of head_dim {m.head_dim}; use a roofline: kernels=null")
        if m.experts and experts_key(m) not in k.experts:
            raise ValueError(f"the kernels of {k.source} have no experts {experts_key(m)}; use a roofline: kernels=null")
        if self.gpus > 1 and not k.all_reduce:
            raise ValueError(f"the kernels of {k.source} have no all-reduce; use gpus=1 or a roofline: kernels=null")

    def iteration_s(self, batch: int, context: float, chunk: int = 0, before: int = 0) -> float:
        """Seconds of one pass: `batch` decoding requests with `context` tokens of KV in total, and `chunk` prompt tokens after `before`."""
        tokens = batch + chunk
        layer_s = self._attention_s(tokens, batch, context, chunk, before) + self._all_reduces_s(tokens) + self._elementwise_s(tokens)
        model = self.model
        dense = model.dense_layers if model.experts else model.layers
        blocks_s = dense * self._mlp_s(tokens, model.inner) if dense else 0.0
        blocks_s += (model.layers - dense) * self._experts_s(tokens) if model.experts else 0.0
        head_s = self._gemm_s(max(1, batch + (1 if chunk else 0)), model.vocabulary / self.gpus, model.hidden)
        return self.overhead_s + self.request_s * batch + model.layers * layer_s + blocks_s + head_s

    def _gemm_s(self, m: float, n: float, k: float) -> float:
        return self.kernels.gemm.seconds(2 * m * n * k, 2 * n * k, 2 * (m * n + m * k))

    def _mlp_s(self, tokens: int, inner: int) -> float:
        hidden, inner_each = self.model.hidden, inner / self.gpus
        return self._gemm_s(tokens, 2 * inner_each, hidden) + self._gemm_s(tokens, hidden, inner_each)

    def _experts_s(self, tokens: int) -> float:
        m = self.model
        work = expert_work(m.hidden, m.expert_inner / self.gpus, m.experts, m.experts_active, tokens, WEIGHT_BYTES[m.expert_dtype])
        shared_s = self._mlp_s(tokens, m.shared_experts * m.expert_inner) if m.shared_experts else 0.0
        return self.kernels.experts[experts_key(m)].seconds(*work) + shared_s

    def _attention_s(self, tokens: int, batch: int, context: float, chunk: int, before: int) -> float:
        m = self.model
        heads = m.heads / self.gpus
        if m.kv_kinds == 1:
            return self._latent_attention_s(tokens, batch, context, chunk, before, heads)
        kv_heads, dim = max(1.0, m.kv_heads / self.gpus), m.head_dim
        projections_s = self._gemm_s(tokens, (heads + 2 * kv_heads) * dim, m.hidden) + self._gemm_s(tokens, m.hidden, heads * dim)
        share = m.window_layers / m.layers
        full_s = self._full_attention_s(batch, context, chunk, before, heads, kv_heads)
        if not share:
            return projections_s + full_s
        seen = min(context, batch * m.window)
        # A prompt in a window has chunk x window pairs instead of the triangle.
        window_s = self._full_attention_s(batch, seen, 0, 0, heads, kv_heads) if batch else 0.0
        window_s += self._prompt_s(heads, kv_heads, chunk, min(chunk * m.window, chunk * (before + chunk / 2))) if chunk else 0.0
        return projections_s + (1 - share) * full_s + share * window_s

    def _full_attention_s(self, batch: int, context: float, chunk: int, before: int, heads: float, kv_heads: float) -> float:
        seconds, dim = 0.0, self.model.head_dim
        if batch:
            seconds += self.kernels.decode_attention[dim].seconds(4 * context * kv_heads * dim, batch * kv_heads)
        if chunk:
            seconds += self._prompt_s(heads, kv_heads, chunk, chunk * (before + chunk / 2))
        return seconds

    def _prompt_s(self, heads: float, kv_heads: float, chunk: int, pairs: float) -> float:
        """pairs: query-key pairs of the causal mask."""
        dim = self.model.head_dim
        return self.kernels.prefill_attention[dim].seconds(4 * heads * dim * pairs, 4 * chunk * dim * (heads + kv_heads))

    def _latent_attention_s(self, tokens: int, batch: int, context: float, chunk: int, before: int, heads: float) -> float:
        m, k = self.model, self.kernels
        assert k.latent_prefill is not None
        assert k.latent_decode is not None
        seconds = self._gemm_s(tokens, m.query_latent + m.head_dim, m.hidden) + self._gemm_s(tokens, heads * m.key_dim, m.query_latent)
        seconds += self._gemm_s(tokens, m.hidden, heads * m.value_dim)
        if batch:
            seconds += k.latent_decode.seconds(*latent_decode_work(heads, context, m.head_dim), batch * heads)
        if chunk:
            pairs = chunk * (before + chunk / 2)
            seconds += k.latent_prefill.seconds(*latent_prefill_work(heads, chunk, pairs, m.key_dim, m.value_dim))
        return seconds

    def _all_reduces_s(self, tokens: int) -> float:
        if self.gpus == 1:
            return 0.0
        known = self.kernels.all_reduce
        one = known[min(known, key=lambda gpus: (abs(gpus - self.gpus), gpus))]
        return 2 * (one.launch_s + tokens * self.model.hidden * 2 / one.bytes_per_s)

    def _elementwise_s(self, tokens: int) -> float:
        """Seconds of norms, RoPE, residuals and activation: bytes read and written at four fifths of the memory bandwidth."""
        m = self.model
        inner = m.inner if not m.experts else m.expert_inner * m.experts_active
        values = 8 * m.hidden + (2 * (m.heads + 2 * m.kv_heads) * m.head_dim + 3 * inner) / self.gpus
        return 2 * tokens * values / (0.8 * self.memory_bytes_per_s)

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

    def _fit(self, terms: dict[str, float], samples: list[tuple[dict[str, float], float]]) -> Fit:
        names = samples[0][0]
        low = {name: min(at[name] for at, _ in samples) for name in names}
        high = {name: max(at[name] for at, _ in samples) for name in names}
        made = Fit(tuple(terms), tuple(terms.values()), low, high, 0.0, len(samples))
        square = sum((made.seconds(**at) / seconds - 1) ** 2 for at, seconds in samples) / len(samples)
        return replace(made, residual=math.hypot(math.sqrt(square), self.error))

    @property
    def error(self) -> float:
        """Relative error of the kernels that take most of a pass."""
        return max(self.kernels.gemm.error, self.kernels.experts[experts_key(self.model)].error if self.model.experts else 0.0)


def _pieces(variable: str, points: list[tuple[int, float]]) -> dict[str, float]:
    """Coefficients of straight lines between the points; the first and the last line continue outside."""
    slopes = [(after_s - before_s) / (after - before) for (before, before_s), (after, after_s) in pairwise(points)]
    terms = {"1": points[0][1] - slopes[0] * points[0][0], variable: slopes[0]}
    return terms | {f"{variable}>{knot}": after - before for (knot, _), before, after in zip(points[1:-1], slopes, slopes[1:])}


def expert_work(
    hidden: float, inner: float, experts: float, active: float, tokens: float, weight_bytes: float
) -> tuple[float, float, float]:
    """(flops, bytes of the experts that some token needs if all are equally likely, activation bytes) of one layer."""
    touched = experts * (1 - (1 - active / experts) ** tokens)
    return 6 * tokens * active * hidden * inner, 3 * touched * hidden * inner * weight_bytes, 2 * tokens * active * hidden


def latent_decode_work(heads: float, context: float, latent_dim: float) -> tuple[float, float]:
    """(flops, bytes) if the key projection is absorbed into the query: each head reads the latent itself (DeepSeek-V2, section 2.1)."""
    return 2 * context * heads * (2 * latent_dim - 64), 2 * context * latent_dim


def latent_prefill_work(heads: float, chunk: float, pairs: float, key_dim: float, value_dim: float) -> tuple[float, float]:
    """(flops, bytes) of latent attention over `chunk` prompt tokens."""
    return 2 * heads * (key_dim + value_dim) * pairs, 4 * chunk * heads * (key_dim + value_dim)

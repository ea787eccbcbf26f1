"""A Profile for hardware that was not measured here. Its source is `published` if it uses published kernel tables (abkt.profile.kernels),
and `roofline` if it uses a data sheet only. Neither was validated on the hardware.

pass     = overhead + layers x layer overhead + the larger of arithmetic and weights read + collectives
decode   = pass of the batch + requests x request overhead + context x kv bytes / bandwidth
prefill  = pass of the prompt + tokens^2 x 2 layers heads head_dim / flops   (causal attention: half)
codec    = published speeds of the GPU's codecs, or tokens x (KV bytes read + coded bytes written) / (bandwidth x codec_efficiency)
lossless = 12 of bfloat16's 16 bits (SplitZip's fixed codes, arXiv 2605.01708); other dtypes have no lossless mode here

Weights read are all dense ones, and the experts that some token of the pass chooses. An all-reduce over n GPUs sends 2 (n - 1) / n of the
tensor over each GPU's link.

Not modelled: kernel launch gaps beyond the overheads, escapes of the lossless code.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from abkt.profile.kernels import ROUTING_SKEW, GpuKernels, imbalance, touched_experts
from abkt.profile.model_costs import ModelCosts, Parallel, PassCosts
from abkt.profile.schema import Fit, Profile, RateCurve
from abkt.ranges import bound
from abkt.spec import KV_BYTES, WEIGHT_BYTES, ModelSpec

LOSSLESS_SHARE = {"bfloat16": 12 / 16}  # assumption; measured on the probe's KV: 0.71
CODEC_DEPTHS = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class Speculation:
    """Speculative decoding. draft_tokens: tokens that a pass verifies beyond its own. accepted_tokens: mean number of those that are
    accepted. draft_share: time of drafting, as a share of the verifying pass."""

    draft_tokens: int = 0
    accepted_tokens: float = 0.0
    draft_share: float = 0.0

    def __post_init__(self) -> None:
        bound(self, "draft_tokens", least=0, most=1_000)
        bound(self, "accepted_tokens", "draft_share", least=0)
        if self.accepted_tokens > self.draft_tokens:
            raise ValueError(f"accepted_tokens is {self.accepted_tokens}; at most draft_tokens, {self.draft_tokens}, can be accepted")


@dataclass(frozen=True, slots=True)
class CodecSpeed:
    """Measured speed of a codec on one GPU, in bytes of KV per second, and the seconds of its calls."""

    encode_bytes_per_s: float
    expand_bytes_per_s: float
    encode_call_s: float = 0.0
    expand_call_s: float = 0.0

    def __post_init__(self) -> None:
        bound(self, "encode_bytes_per_s", "expand_bytes_per_s", above=0)
        bound(self, "encode_call_s", "expand_call_s", least=0)


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One serving instance.

    gpus, expert_parallel, attention_data_parallel: number of GPUs and how they share a model (abkt.profile.model_costs). flops, fp8_flops,
    fp4_flops, memory_bytes_per_s, memory_bytes: dense peaks in 16, 8 and 4 bits (0: the type has no units of its own, and runs at 16 bits),
    memory bandwidth and memory of each GPU; the efficiencies scale them. link_bytes_per_s, link_call_s: bandwidth of a GPU's link to its
    peers, one way, and seconds of a collective's launch, for a roofline; 0: communication takes no time.
    overhead_s, layer_s, request_s: seconds of each pass besides its kernels, of each layer in it, and of each request in it.
    first_token_s: seconds of an engine's front end before a client has its first token. engine: which engine and version these are of.
    call_s: seconds of a copy or kernel call. routing_skew: how unevenly experts are chosen (abkt.profile.kernels.touched_experts).
    memory_reserve: share of the memory kept for activations. kv_tokens: measured KV capacity of the instance in tokens; 0: it is computed.
    context_tokens: length of the sequences that the capacity is computed for; it counts only for models with windows.
    speculation: speculative decoding. codecs: measured speeds of codecs, by the stages' names (`lossless`, `entropy`, a depth in bits).
    kernels: fits of published kernel tables, or None.
    """

    name: str
    flops: float
    memory_bytes_per_s: float
    memory_bytes: float
    gpus: int = 1
    compute_efficiency: float = 0.6
    memory_efficiency: float = 0.8
    codec_efficiency: float = 0.6
    overhead_s: float = 0.004
    call_s: float = 10e-6
    usd_per_hour: float = 0.0
    source: str = ""
    request_s: float = 0.0
    kernels: GpuKernels | None = None
    fp8_flops: float = 0.0
    fp4_flops: float = 0.0
    link_bytes_per_s: float = 0.0
    link_call_s: float = 10e-6
    layer_s: float = 0.0
    first_token_s: float = 0.0
    engine: str = ""
    expert_parallel: int = 1
    attention_data_parallel: int = 1
    routing_skew: float = ROUTING_SKEW
    memory_reserve: float = 0.1
    kv_tokens: int = 0
    context_tokens: int = 8192
    speculation: Speculation = Speculation()  # frozen
    codecs: dict[str, CodecSpeed] = field(default_factory=dict)
    codec_source: str = ""

    def __post_init__(self) -> None:
        bound(self, "flops", "memory_bytes_per_s", "memory_bytes", above=0)
        bound(self, "fp8_flops", "fp4_flops", "link_bytes_per_s", "link_call_s", least=0)
        bound(self, "gpus", least=1, most=100_000)
        bound(self, "compute_efficiency", "memory_efficiency", "codec_efficiency", above=0, most=1)
        bound(self, "overhead_s", "call_s", "request_s", "layer_s", "first_token_s", "usd_per_hour", least=0)
        bound(self, "memory_reserve", least=0, most=0.99)
        bound(self, "routing_skew", "context_tokens", least=1)
        bound(self, "kv_tokens", least=0)
        _ = self.parallel

    @property
    def parallel(self) -> Parallel:
        return Parallel(self.gpus, self.expert_parallel, self.attention_data_parallel)

    def peak(self, weights: str) -> float:
        """Dense peak of one GPU for weights of this type. Types of 4 bits with 16-bit activations run at 16 bits."""
        if weights in ("float8_e4m3fn", "fp8_block"):
            return self.fp8_flops or self.flops
        return self.fp4_flops or self.fp8_flops or self.flops if weights == "nvfp4" else self.flops


def kv_tokens(gpu: GpuSpec, model: ModelSpec) -> int:
    """Tokens of KV that fit beside the weights, or the measured number.

    Each GPU holds its share of the weights, and of the KV its own heads: a head is copied where there are fewer heads than GPUs, and the
    latent of latent attention is whole on every GPU. Groups of attention data parallelism hold other requests, and a copy of the dense
    weights each. Layers with a window hold the last tokens of each sequence only. Raises ValueError if none fit.
    """
    if gpu.kv_tokens:
        return gpu.kv_tokens
    share = gpu.parallel.attention_gpus
    heads = 1 if model.kv_kinds == 1 else model.kv_heads
    routed = min(model.expert_parameters * WEIGHT_BYTES[model.expert_weights], model.bytes_of_weights)
    weights = (model.bytes_of_weights - routed) / share + routed / gpu.gpus
    left = gpu.memory_bytes * (1 - gpu.memory_reserve) - weights
    length = min(gpu.context_tokens, model.max_tokens)
    token_bytes = model.kv_bytes(length) / length / min(share, heads)
    tokens = int(left // token_bytes) * gpu.attention_data_parallel
    if tokens < 1:
        raise ValueError(f"model {model.name} does not fit on {gpu.gpus} x {gpu.name}: no memory is left for KV")
    return tokens


def profile_of(gpu: GpuSpec, model: ModelSpec, curves: tuple[RateCurve, ...]) -> Profile:
    """The published profile if the GPU has kernels, else its roofline. Raises ValueError if a kernel for the model is missing."""
    if gpu.kernels is None:
        return roofline(gpu, model, curves)
    costs = ModelCosts(
        model, gpu.kernels, gpu.parallel, gpu.memory_bytes_per_s, gpu.overhead_s, gpu.layer_s, gpu.request_s, gpu.routing_skew
    )
    return _profile(gpu, model, curves, costs, "published", kernels=gpu.kernels.source)


def roofline(gpu: GpuSpec, model: ModelSpec, curves: tuple[RateCurve, ...]) -> Profile:
    """The profile computed from the data sheet by the formulas in this module's docstring."""
    return _profile(gpu, model, curves, SheetCosts(gpu, model), "roofline")


@dataclass(frozen=True)
class SheetCosts(PassCosts):
    """A model on a data sheet."""

    gpu: GpuSpec
    model: ModelSpec  # type: ignore[misc]

    @property
    def overhead_s(self) -> float:  # type: ignore[override]
        return self.gpu.overhead_s

    @property
    def measured(self) -> bool:
        return False

    def iteration_s(self, batch: int, context: float, chunk: int = 0, before: int = 0) -> float:
        gpu, m = self.gpu, self.model
        copies = gpu.gpus / (min(gpu.parallel.attention_gpus, 1 if m.kv_kinds == 1 else m.kv_heads) * gpu.attention_data_parallel)
        windowed = m.window_layers / m.layers
        seen = (1 - windowed) * context + windowed * min(context, batch * m.window)
        read_s = seen * m.kv_bytes_per_token * copies / (gpu.memory_bytes_per_s * gpu.gpus * gpu.memory_efficiency)
        triangle = chunk * (before + chunk / 2)
        pairs = (1 - windowed) * triangle + windowed * min(chunk * m.window, triangle)
        attention_s = 4 * m.layers * m.heads * m.head_dim * pairs / (gpu.flops * gpu.gpus * gpu.compute_efficiency)
        return self.pass_s(batch + chunk) + gpu.request_s * batch + read_s + attention_s

    def pass_s(self, tokens: float) -> float:
        gpu, m = self.gpu, self.model
        arithmetic = gpu.gpus * gpu.compute_efficiency
        memory = gpu.memory_bytes_per_s * gpu.gpus * gpu.memory_efficiency
        routed, chosen = m.expert_parameters, m.expert_parameters * m.experts_active / m.experts if m.experts else 0.0
        dense = max(0.0, m.active_parameters - chosen)
        seconds = gpu.overhead_s + m.layers * gpu.layer_s + self._collectives_s(tokens)
        dense_bytes = dense * WEIGHT_BYTES[m.weights] * gpu.attention_data_parallel
        seconds += max(2 * tokens * dense / (gpu.peak(m.weights) * arithmetic), dense_bytes / memory)
        if m.experts:
            load = imbalance(m.experts, gpu.expert_parallel, gpu.routing_skew)
            share = touched_experts(m.experts, m.experts_active, tokens, gpu.routing_skew) / m.experts
            read_s = routed * share * WEIGHT_BYTES[m.expert_weights] / memory
            seconds += max(load * 2 * tokens * chosen / (gpu.peak(m.expert_weights) * arithmetic), read_s)
        return seconds

    def _collectives_s(self, tokens: float) -> float:
        """Two collectives for each layer. An all-to-all sends each token to the groups of its experts, there and back."""
        gpu, m = self.gpu, self.model
        count, each = gpu.parallel.attention_gpus, tokens / gpu.attention_data_parallel
        if gpu.gpus == 1 or not gpu.link_bytes_per_s:
            return 0.0
        tensor = 2 * each * m.hidden

        def all_reduce_s(gpus: int) -> float:
            return gpu.link_call_s + 2 * (gpus - 1) / gpus * tensor / gpu.link_bytes_per_s if gpus > 1 else 0.0

        if gpu.attention_data_parallel == 1 or not m.experts:
            return 2 * m.layers * all_reduce_s(count)
        groups = gpu.expert_parallel
        reached = groups * (1 - (1 - 1 / groups) ** m.experts_active) if groups > 1 else 1.0
        moved_s = gpu.link_call_s + reached * (gpu.gpus - 1) / gpu.gpus * tensor / gpu.link_bytes_per_s
        routed = m.layers - m.dense_layers
        return (m.layers + m.dense_layers) * all_reduce_s(count) + 2 * routed * moved_s


def _profile(gpu: GpuSpec, model: ModelSpec, curves: tuple[RateCurve, ...], costs: PassCosts, source: str, **about: str) -> Profile:
    fits = {**speculated(costs, gpu.speculation).fits(), "transport": _exact({"calls": gpu.call_s, "bytes": 0.0})}
    if gpu.first_token_s:
        fits["first_token"] = _exact({"1": gpu.first_token_s})
    lossless_share = LOSSLESS_SHARE.get(model.dtype, 0.0)
    facts = {"gpu": gpu.name, "source": gpu.source, "engine": gpu.engine, "codec": gpu.codec_source, **about}
    return Profile(
        model=model,
        fits=fits | codec_fits(gpu, model, lossless_share),
        curves=curves,
        fingerprint={name: fact for name, fact in facts.items() if fact},
        source=source,
        lossless_share=lossless_share,
    )


def codec_fits(gpu: GpuSpec, model: ModelSpec, lossless_share: float) -> dict[str, Fit]:
    """The codec's stages: published speeds where the GPU has them; a copy at codec_efficiency of the memory bandwidth for the others."""
    kv_bytes, value_bytes = model.kv_bytes_per_token, KV_BYTES[model.dtype]
    bandwidth = gpu.memory_bytes_per_s * gpu.gpus * gpu.codec_efficiency
    fits = {"encode/raw": _exact({"tokens": 0.0}), "expand/raw": _exact({"tokens": 0.0})}
    shares = {str(bits): (bits + 0.25) / (8 * value_bytes) for bits in CODEC_DEPTHS}
    if lossless_share:
        shares["lossless"] = lossless_share
    for name, share in shares.items():
        speed = gpu.codecs.get(name)
        copied = _exact({"1": gpu.call_s, "tokens": kv_bytes * (1 + share) / bandwidth})
        fits[f"encode/{name}"] = fits[f"expand/{name}"] = copied
        if speed is not None:
            fits[f"encode/{name}"] = _exact({"1": speed.encode_call_s, "tokens": kv_bytes / (speed.encode_bytes_per_s * gpu.gpus)})
            fits[f"expand/{name}"] = _exact({"1": speed.expand_call_s, "tokens": kv_bytes / (speed.expand_bytes_per_s * gpu.gpus)})
    return fits


def speculated(costs: PassCosts, speculation: Speculation) -> PassCosts:
    return _Speculated(costs, speculation) if speculation.draft_tokens else costs


@dataclass(frozen=True)
class _Speculated(PassCosts):
    """A decode step verifies draft_tokens + 1 tokens of each request, and counts as one step for each token that it yields."""

    costs: PassCosts
    speculation: Speculation

    @property
    def model(self) -> ModelSpec:  # type: ignore[override]
        return self.costs.model

    @property
    def error(self) -> float:
        return self.costs.error

    @property
    def measured(self) -> bool:
        return self.costs.measured

    def iteration_s(self, batch: int, context: float, chunk: int = 0, before: int = 0) -> float:
        it = self.speculation
        whole_s = self.costs.iteration_s(batch, context, chunk, before)
        if not batch:
            return whole_s
        verified_s = whole_s + self.costs.pass_s(batch * (1 + it.draft_tokens) + chunk) - self.costs.pass_s(batch + chunk)
        return verified_s * (1 + it.draft_share) / (1 + it.accepted_tokens)

    def pass_s(self, tokens: float) -> float:
        return self.costs.pass_s(tokens)


def with_codec_efficiency(gpu: GpuSpec, efficiency: float) -> GpuSpec:
    """The GPU with all codecs at a share of its memory bandwidth, without published speeds."""
    return replace(gpu, codec_efficiency=efficiency, codecs={}, codec_source="")


def _exact(terms: dict[str, float]) -> Fit:
    return Fit(tuple(terms), tuple(terms.values()), low={}, high={}, residual=0.0, samples=0)

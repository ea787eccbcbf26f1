"""A Profile for hardware that was not measured here. Its source is `published` if it uses published kernel tables (abkt.profile.kernels),
and `roofline` if it uses a data sheet only. Neither was validated on the hardware.

prefill  = overhead + tokens x 2 active_parameters / flops + tokens^2 x 2 layers heads head_dim / flops   (causal attention: half)
decode   = overhead + weights / bandwidth + batch x 2 active_parameters / flops + context x kv bytes / bandwidth
codec    = tokens x (KV bytes read + coded bytes written) / (bandwidth x codec_efficiency)
lossless = 12 of bfloat16's 16 bits (SplitZip's fixed codes, arXiv 2605.01708); other dtypes have no lossless mode here

Not modelled: kernel launch gaps beyond one overhead per pass, tensor-parallel communication, expert routing, escapes of the lossless code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from abkt.profile.kernels import GpuKernels, ModelCosts
from abkt.profile.schema import Fit, Profile, RateCurve
from abkt.ranges import bound
from abkt.spec import DTYPE_BYTES, ModelSpec

LOSSLESS_SHARE = {"bfloat16": 12 / 16}  # assumption; measured on the probe's KV: 0.71


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One serving instance.

    gpus: number of GPUs. flops, memory_bytes_per_s, memory_bytes: dense bf16 peak, memory bandwidth and memory of each GPU; the
    efficiencies scale them. overhead_s, request_s: fixed seconds of each iteration, and seconds per request in it. call_s: seconds of a
    copy or kernel call.
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

    def __post_init__(self) -> None:
        bound(self, "flops", "memory_bytes_per_s", "memory_bytes", above=0)
        bound(self, "gpus", least=1, most=100_000)
        bound(self, "compute_efficiency", "memory_efficiency", "codec_efficiency", above=0, most=1)
        bound(self, "overhead_s", "call_s", "request_s", "usd_per_hour", least=0)


def kv_tokens(gpu: GpuSpec, model: ModelSpec, reserve: float = 0.1) -> int:
    """Tokens of KV that fit beside the weights. reserve: share of the memory kept for activations. Raises ValueError if none fit."""
    left = gpu.memory_bytes * gpu.gpus * (1 - reserve) - model.bytes_of_weights
    tokens = int(left // model.kv_bytes_per_token)
    if tokens < 1:
        raise ValueError(f"model {model.name} does not fit on {gpu.gpus} x {gpu.name}: no memory is left for KV")
    return tokens


def profile_of(gpu: GpuSpec, model: ModelSpec, curves: tuple[RateCurve, ...]) -> Profile:
    """The published profile if the GPU has kernels, else its roofline. Raises ValueError if a kernel for the model is missing."""
    sheet = roofline(gpu, model, curves)
    if gpu.kernels is None:
        return sheet
    costs = ModelCosts(model, gpu.kernels, gpu.gpus, gpu.memory_bytes_per_s, gpu.overhead_s, gpu.request_s)
    fits = {**sheet.fits, "prefill": costs.prefill_fit(), "decode": costs.decode_fit()}
    about = {**sheet.fingerprint, "kernels": gpu.kernels.source}
    return replace(sheet, fits=fits, fingerprint=about, source="published")


def roofline(gpu: GpuSpec, model: ModelSpec, curves: tuple[RateCurve, ...]) -> Profile:
    """The profile computed from the data sheet by the formulas in this module's docstring."""
    flops = gpu.flops * gpu.gpus * gpu.compute_efficiency
    memory = gpu.memory_bytes_per_s * gpu.gpus * gpu.memory_efficiency
    codec = gpu.memory_bytes_per_s * gpu.gpus * gpu.codec_efficiency
    token_flops = 2 * model.active_parameters / flops
    kv_bytes, value_bytes = model.kv_bytes_per_token, DTYPE_BYTES[model.dtype]
    attention = 2 * model.layers * model.heads * model.head_dim / flops
    fits = {
        "prefill": _exact({"1": gpu.overhead_s, "tokens": token_flops, "tokens*tokens": attention}),
        "decode": _exact(
            {
                "1": gpu.overhead_s + model.active_parameters * value_bytes / memory,
                "batch": token_flops + gpu.request_s,
                "context": kv_bytes / memory,
            }
        ),
        "transport": _exact({"calls": gpu.call_s, "bytes": 0.0}),
        "encode/raw": _exact({"tokens": 0.0}),
        "expand/raw": _exact({"tokens": 0.0}),
    }
    shares = {str(bits): (bits + 0.25) / (8 * value_bytes) for bits in (2, 4, 8)}
    lossless_share = LOSSLESS_SHARE.get(model.dtype, 0.0)
    if lossless_share:
        shares["lossless"] = lossless_share
    for name, share in shares.items():
        fits[f"encode/{name}"] = fits[f"expand/{name}"] = _exact({"1": gpu.call_s, "tokens": kv_bytes * (1 + share) / codec})
    about = {"gpu": gpu.name, "source": gpu.source}
    return Profile(model=model, fits=fits, curves=curves, fingerprint=about, source="roofline", lossless_share=lossless_share)


def _exact(terms: dict[str, float]) -> Fit:
    return Fit(tuple(terms), tuple(terms.values()), low={}, high={}, residual=0.0, samples=0)

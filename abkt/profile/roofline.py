"""A Profile from a specification sheet, for hardware that nobody here owns: marked `roofline`, never validated.

prefill  = overhead + tokens x 2 active_parameters / flops + tokens^2 x 2 layers heads head_dim / flops   (causal attention: half)
decode   = overhead + weights / bandwidth + batch x 2 active_parameters / flops + context x kv bytes / bandwidth
codec    = tokens x (KV bytes read + coded bytes written) / (bandwidth x codec_efficiency)
exact    = 12 of bfloat16's 16 bits (SplitZip's fixed codes, arXiv 2605.01708); other dtypes have no exact mode here

Not modelled: kernel launch gaps beyond one overhead per pass, tensor-parallel communication, expert routing, escapes of the exact code.
"""

from __future__ import annotations

from dataclasses import dataclass

from abkt.profile.schema import Fit, Profile, RateCurve
from abkt.spec import DTYPE_BYTES, ModelSpec

EXACT_SHARE = {"bfloat16": 12 / 16}  # assumption; the probe's KV takes 0.71


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One serving instance. flops, memory_bytes_per_s: dense bf16 peak and memory bandwidth of all its `gpus`; efficiencies scale them."""

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

    def __post_init__(self) -> None:
        if min(self.flops, self.memory_bytes_per_s, self.memory_bytes, self.gpus) <= 0:
            raise ValueError(f"gpu {self.name}: flops, bandwidth, memory and gpus must be above 0")


def kv_tokens(gpu: GpuSpec, model: ModelSpec, reserve: float = 0.1) -> int:
    """Tokens of KV that fit beside the weights, `reserve` of the memory left to activations. Raises ValueError if none do."""
    left = gpu.memory_bytes * gpu.gpus * (1 - reserve) - model.parameters * DTYPE_BYTES[model.dtype]
    tokens = int(left // model.kv_bytes_per_token)
    if tokens < 1:
        raise ValueError(f"model {model.name} does not fit on {gpu.gpus} x {gpu.name}: no memory is left for KV")
    return tokens


def roofline(gpu: GpuSpec, model: ModelSpec, curves: tuple[RateCurve, ...]) -> Profile:
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
                "batch": token_flops,
                "context": kv_bytes / memory,
            }
        ),
        "transport": _exact({"calls": gpu.call_s, "bytes": 0.0}),
        "encode/raw": _exact({"tokens": 0.0}),
        "expand/raw": _exact({"tokens": 0.0}),
    }
    shares = {str(bits): (bits + 0.25) / (8 * value_bytes) for bits in (2, 4, 8)}
    exact_share = EXACT_SHARE.get(model.dtype, 0.0)
    if exact_share:
        shares["exact"] = exact_share
    for name, share in shares.items():
        fits[f"encode/{name}"] = fits[f"expand/{name}"] = _exact({"1": gpu.call_s, "tokens": kv_bytes * (1 + share) / codec})
    about = {"gpu": gpu.name, "source": gpu.source}
    return Profile(model=model, fits=fits, curves=curves, fingerprint=about, source="roofline", exact_share=exact_share)


def _exact(terms: dict[str, float]) -> Fit:
    return Fit(tuple(terms), tuple(terms.values()), low={}, high={}, residual=0.0, samples=0)

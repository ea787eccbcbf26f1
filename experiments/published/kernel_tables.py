"""The kernel tables of aiconfigurator (Apache-2.0) as samples of work and seconds, and the fits of abkt.profile.kernels to them.

A folder has one Parquet file for each engine and family: gemm, attention (context, generation), mla (whole layers of latent attention, of
prompts and of decode steps), moe, all-reduce; and NCCL's all-to-all. Latencies are in milliseconds. Each fit minimises the relative error
robustly (soft L1) on four rows of five; every fifth row measures it.

Not modelled: what a table does not vary, such as clocks under a long load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from abkt.profile.kernels import (
    ANY,
    Collective,
    DecodeKernel,
    GpuKernels,
    Kernel,
    attention_key,
    expert_work,
    latent_decode_work,
    latent_key,
    latent_prefill_work,
    latent_projections,
)
from abkt.spec import KV_BYTES, WEIGHT_BYTES

HELD_OUT = 5  # every fifth row
ENGINES = ("vllm", "trtllm", "sglang")
CACHES = {  # bytes of L2
    "a100_sxm": 40e6,
    "b200_sxm": 126e6,
    "b300_sxm": 126e6,
    "gb200": 126e6,
    "gb300": 126e6,
    "h100_sxm": 50e6,
    "h200_sxm": 50e6,
    "l40s": 96e6,
    "rtx_pro_6000_server": 128e6,
}
WEIGHTS = {"bfloat16": "bfloat16", "fp8": "float8_e4m3fn", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "w4a16_mxfp4": "mxfp4"}
KV = {"bfloat16": "bfloat16", "fp8": "float8_e4m3fn"}
LATENT = {
    "hidden": 7168,
    "query_latent": 1536,
    "latent": 576,
    "key": 192,
    "value": 128,
}  # of DeepSeek-V3, whose layers the mla tables measure
# hidden, inner, experts, active of models that have a fit of their own
EXPERTS = (
    (4096, 14336, 8, 2),
    (2048, 768, 128, 8),
    (4096, 1536, 128, 8),
    (7168, 2048, 256, 8),
    (7168, 2048, 384, 8),
    (3072, 1536, 256, 8),
    (2880, 2880, 128, 4),
    (2880, 2880, 32, 4),
)
FEWEST = 40  # rows of a fit
FAMILIES = ("gemm", "prefill_attention", "decode_attention", "latent_prefill", "latent_decode", "all_reduce", "all_to_all", "experts")
GEMM_LAUNCH_S, EXPERTS_LAUNCH_S, LARGEST_ERROR = 10e-6, 150e-6, 0.3


@dataclass(frozen=True, slots=True)
class KernelTables:
    """The folder of one GPU, as one engine ran it."""

    folder: Path
    engine: str = "vllm"

    def read(self, family: str, engine: str = "") -> pd.DataFrame | None:
        """The newest table of a family, or None. Its column `s` has seconds."""
        files = self._files(family, engine)
        if not files:
            return None
        table = pd.read_parquet(files[-1])
        return table.assign(s=table["latency"] / 1e3)

    def version(self, family: str) -> str:
        return self._files(family)[-1].name.split(f"_{self.engine}_")[1].split("_")[0]

    def _files(self, family: str, engine: str = "") -> list[Path]:
        return sorted(self.folder.glob(f"*_{engine or self.engine}_*_{family}_perf.parquet"), key=lambda path: path.name)


def fit_gpu(folder: Path, engine: str = "vllm") -> GpuKernels:
    """The kernels of one engine. What its tables lack, or have timed with the host's launches, is taken from the other engines' tables.

    Raises ValueError, one line, where the folder has no tables of GEMM and attention.
    """
    if folder.name not in CACHES:
        raise ValueError(f"{folder.name} is not a GPU whose L2 cache is known here; there are {', '.join(CACHES)}")
    if engine not in ENGINES:
        raise ValueError(f"engine {engine} is not one of {', '.join(ENGINES)}")
    tables = KernelTables(folder, engine)
    if any(tables.read(name) is None for name in ("gemm", "context_attention", "generation_attention")):
        raise ValueError(f"{folder} has no {engine} tables of gemm, context_attention and generation_attention")
    own = _fit_engine(tables)
    for other in ENGINES:
        if other != engine:
            own = _filled(own, _fit_engine(KernelTables(folder, other)))
    return own


@lru_cache(maxsize=64)
def _fit_engine(tables: KernelTables) -> GpuKernels:
    cache = CACHES[tables.folder.name]
    gemm, prefill, decode = (tables.read(name) for name in ("gemm", "context_attention", "generation_attention"))
    latent_prefill, latent_decode = tables.read("mla_context_module"), tables.read("mla_generation_module")
    moe, all_reduce, nccl = tables.read("moe"), tables.read("custom_allreduce"), tables.read("nccl", "nccl")
    return GpuKernels(
        source=f"aiconfigurator {tables.folder.name} (Apache-2.0), {tables.engine} {'' if gemm is None else tables.version('gemm')}",
        gemm={} if gemm is None else _sound(fit_gemms(gemm, cache), GEMM_LAUNCH_S),
        prefill_attention={} if prefill is None else _attention(prefill, fit_prefill),
        decode_attention={} if decode is None else _attention(decode, partial(fit_decode, cache=cache)),
        latent_prefill={} if latent_prefill is None else _latent(latent_prefill, fit_latent_prefill),
        latent_decode={} if latent_decode is None else _latent(latent_decode, fit_latent_decode),
        all_reduce={} if all_reduce is None else fit_all_reduce(all_reduce),
        all_to_all={} if nccl is None else fit_all_to_all(nccl),
        experts={} if moe is None else _sound(fit_experts(moe), EXPERTS_LAUNCH_S),
    )


def _sound(fits: dict[str, Kernel], launch_s: float) -> dict[str, Kernel]:
    """The fits of kernels: without those whose launch takes longer than any kernel's in a CUDA graph, and those that miss by half."""
    return {name: fit for name, fit in fits.items() if fit.launch_s < launch_s and fit.error < LARGEST_ERROR}


def _filled(own: GpuKernels, other: GpuKernels) -> GpuKernels:
    """The first, with what only the second has."""
    parts = {name: getattr(other, name) | getattr(own, name) for name in FAMILIES}
    return replace(own, **parts)


def fit_gemms(table: pd.DataFrame, cache: float) -> dict[str, Kernel]:
    """By type of the weights. Where several kernels ran the same shape, the fastest counts, as an engine that tunes itself takes it."""
    fastest = (
        table[(table.n < 30_000) & (table.k < 30_000) & (table.m <= 16384)].groupby(["gemm_dtype", "m", "n", "k"], as_index=False).s.min()
    )
    fits = {}
    for dtype, t in fastest.groupby("gemm_dtype"):
        if dtype not in WEIGHTS:
            continue
        weight_bytes = WEIGHT_BYTES[WEIGHTS[str(dtype)]]
        read = weight_bytes * t.n * t.k
        large = (t.m >= 256) & (t.n * t.k >= 1 << 21)  # arithmetic hides the cache
        small = (t.m <= 64) & (read < 1e6)  # only the launch is left
        t = t[(read > cache) | large | small]
        m, n, k = (t[name].to_numpy(float) for name in ("m", "n", "k"))
        fits[WEIGHTS[str(dtype)]] = _kernel(t.s, 2 * m * n * k, weight_bytes * n * k, 2 * (m * n + m * k))
    return fits


def _attention(table: pd.DataFrame, fit: Callable[[pd.DataFrame, int, float], object]) -> dict:
    """A fit for each head_dim and type of the KV."""
    fits = {}
    for (dim, dtype), t in table[table.window_size == 0 if "window_size" in table else slice(None)].groupby(["head_dim", "kv_cache_dtype"]):
        if dim in (64, 128) and dtype in KV:
            fits[attention_key(int(dim), KV[str(dtype)])] = fit(t, int(dim), KV_BYTES[KV[str(dtype)]])
    return fits


def fit_prefill(t: pd.DataFrame, dim: int, kv_bytes: float) -> Kernel:
    """Fitted on prompts of at least 64 tokens, because shorter ones take only the launch time."""
    t = _fastest(t[t.isl >= 64], ["batch_size", "isl", "num_heads", "num_key_value_heads"])
    batch, tokens, heads, kv_heads = (t[name].to_numpy(float) for name in ("batch_size", "isl", "num_heads", "num_key_value_heads"))
    return _kernel(t.s, 4 * batch * heads * dim * tokens * tokens / 2, batch * tokens * dim * (4 * heads + 2 * kv_bytes * kv_heads))


def fit_decode(t: pd.DataFrame, dim: int, kv_bytes: float, cache: float) -> DecodeKernel:
    t = _fastest(t, ["batch_size", "step", "num_heads", "num_key_value_heads"])
    batch, step, kv_heads = (t[name].to_numpy(float) for name in ("batch_size", "step", "num_key_value_heads"))
    read = 2 * kv_bytes * batch * (step + 1) * dim * kv_heads
    kept = (read > 2 * cache) | (read < 1e6)  # between these sizes the KV of the measurement stays in the cache
    t, read, heads = t[kept], read[kept], (batch * kv_heads)[kept]
    found, error, rows = _fit(t.s.to_numpy(), lambda x, i: x[0] + read[i] / x[1] + heads[i] * x[2], (1e-5, 1e12, 2e-8))
    launch_s, bytes_per_s, head_s = found
    return DecodeKernel(launch_s, bytes_per_s, head_s, error, rows)


def _latent(table: pd.DataFrame, fit: Callable[[pd.DataFrame, float, float], Kernel]) -> dict[str, Kernel]:
    """A fit for each type of the weights and of the KV."""
    fits = {}
    for (gemm, dtype), t in table.groupby(["gemm_type", "kv_cache_dtype"]):
        if gemm in WEIGHTS and dtype in KV and len(t) >= FEWEST:
            weights, kv = WEIGHTS[str(gemm)], KV[str(dtype)]
            fits[latent_key(weights, kv)] = fit(t, WEIGHT_BYTES[weights], KV_BYTES[kv])
    return fits


def fit_latent_prefill(t: pd.DataFrame, weight_bytes: float, _: float) -> Kernel:
    t = _fastest(t[t.isl >= 64], ["batch_size", "isl", "num_heads"])
    batch, tokens, heads = (t[name].to_numpy(float) for name in ("batch_size", "isl", "num_heads"))
    weights = latent_projections(heads=heads, **LATENT)  # type: ignore[arg-type]
    pairs = batch * tokens * tokens / 2
    work = latent_prefill_work(weights, weight_bytes, heads, batch * tokens, pairs, LATENT["key"], LATENT["value"])  # type: ignore[arg-type]
    return _kernel(t.s, *map(np.asarray, work))


def fit_latent_decode(t: pd.DataFrame, weight_bytes: float, kv_bytes: float) -> Kernel:
    t = _fastest(t, ["batch_size", "step", "num_heads"])
    batch, step, heads = (t[name].to_numpy(float) for name in ("batch_size", "step", "num_heads"))
    weights = latent_projections(heads=heads, **LATENT)  # type: ignore[arg-type]
    work = latent_decode_work(weights, weight_bytes, heads, batch, batch * step, LATENT["latent"], kv_bytes)  # type: ignore[arg-type]
    return _kernel(t.s, *map(np.asarray, work))


def fit_all_reduce(table: pd.DataFrame) -> dict[int, Collective]:
    graph = table[table.backend.str.endswith("graph")] if "backend" in table else table
    return {int(gpus): _collective(t) for gpus, t in graph.groupby("num_gpus")}


def fit_all_to_all(table: pd.DataFrame) -> dict[int, Collective]:
    kept = table[(table.op_name == "alltoall") & (table.nccl_dtype == "half")]
    return {int(gpus): _collective(t.assign(message_size=2.0 * t.message_size)) for gpus, t in kept.groupby("num_gpus")}


def _collective(t: pd.DataFrame) -> Collective:
    size = t.message_size.to_numpy(float)
    (launch_s, bytes_per_s, ramp_s, ramp_bytes), error, rows = _fit(t.s.to_numpy(), partial(_call_s, size), (5e-6, 1e11, 1e-5, 1e6))
    return Collective(launch_s, bytes_per_s, ramp_s, ramp_bytes, error, rows)


def _call_s(size: np.ndarray, x: np.ndarray, i: np.ndarray) -> np.ndarray:
    return np.asarray(x[0] + size[i] / x[1] + x[2] * size[i] / (size[i] + x[3]))


def fit_experts(table: pd.DataFrame) -> dict[str, Kernel]:
    """A fit for each type of weights over all shapes, and one for each shape in EXPERTS; tensor parallel, balanced routing, in which T
    tokens touch exactly min(experts, T x active) experts."""
    kept = table[(table.distribution == "balanced") & (table.moe_ep_size == 1) & (table.moe_tp_size <= 8)]
    keys = ["hidden_size", "inter_size", "num_experts", "topk", "moe_tp_size", "num_tokens"]
    fits = {}
    for there, t in kept.groupby("moe_dtype"):
        if there not in WEIGHTS:
            continue
        dtype, t = WEIGHTS[str(there)], _fastest(t, keys)
        fits[f"{ANY}_{dtype}"] = _experts(t, dtype)
        for shape in EXPERTS:
            s = t[(t[keys[:4]] == shape).all(axis=1)]
            if len(s) >= FEWEST:
                fits["x".join(map(str, shape)) + f"_{dtype}"] = _experts(s, dtype)
    return fits


def _experts(t: pd.DataFrame, dtype: str) -> Kernel:
    hidden, inner, experts, active, tokens = (
        t[name].to_numpy(float) for name in ("hidden_size", "inter_size", "num_experts", "topk", "num_tokens")
    )
    touched = np.minimum(experts, tokens * active)
    return _kernel(t.s, *expert_work(hidden, inner / t.moe_tp_size.to_numpy(float), touched, active, tokens, WEIGHT_BYTES[dtype]))


def _fastest(t: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One row for each shape: of the kernel that took least."""
    return t.groupby(keys, as_index=False).s.min()


def _kernel(seconds: pd.Series, flops: np.ndarray, read: np.ndarray, moved: np.ndarray | None = None) -> Kernel:
    moved = np.zeros_like(flops) if moved is None else moved

    def model(x: np.ndarray, i: np.ndarray) -> np.ndarray:
        sharpness = 1 + x[3]
        roof = ((flops[i] / x[1]) ** sharpness + (read[i] / x[2]) ** sharpness) ** (1 / sharpness)
        return x[0] + roof + moved[i] / x[4]

    found, error, rows = _fit(seconds.to_numpy(), model, (1e-5, 3e14, 2e12, 1.0, 5e12))
    launch, rate, read_rate, above, moved_rate = found
    return Kernel(launch, rate, read_rate, min(1 + above, 8.0), moved_rate if moved.any() else float("inf"), error, rows)


def _fit(
    seconds: np.ndarray, model: Callable[[np.ndarray, np.ndarray], np.ndarray], start: Sequence[float]
) -> tuple[list[float], float, int]:
    """(coefficients, mean relative error on the held-out rows, number of those). All coefficients are above 0."""
    rows = np.arange(len(seconds))
    held, kept = rows[rows % HELD_OUT == HELD_OUT - 1], rows[rows % HELD_OUT != HELD_OUT - 1]
    low, high = np.log(np.array(start) * 1e-5), np.log(np.array(start) * 1e3)

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.log(model(np.exp(x), kept) / seconds[kept])

    with np.errstate(over="ignore"):
        found = np.exp(least_squares(residuals, np.log(start), bounds=(low, high), loss="soft_l1", f_scale=0.1).x)
    error = np.abs(model(found, held) / seconds[held] - 1).mean()
    return [float(f"{x:.4g}") for x in found], float(f"{error:.3g}"), len(held)

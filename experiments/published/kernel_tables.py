"""The kernel tables of aiconfigurator (Apache-2.0) as samples of work and seconds, and the fits of abkt.profile.kernels to them.

A folder has one Parquet file for each family: gemm, attention (context, generation), mla (context, generation), moe, custom all-reduce.
Latencies are in milliseconds. Each fit minimises the relative error robustly (soft L1) on four rows of five; every fifth row measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from abkt.profile.kernels import AllReduce, DecodeKernel, GpuKernels, Kernel, expert_work, latent_decode_work, latent_prefill_work
from abkt.spec import WEIGHT_BYTES

HELD_OUT = 5  # every fifth row
CACHES = {"a100_sxm": 40e6, "h100_sxm": 50e6, "h200_sxm": 50e6, "l40s": 96e6}  # bytes of L2
LATENT = {"key_dim": 192, "value_dim": 128, "latent_dim": 576}  # of DeepSeek-V3, whose attention the mla tables measure
# hidden, inner, experts, active, dtype in ABKT and in the table, of the models in conf/model
EXPERTS = (
    (4096, 14336, 8, 2, "bfloat16", "bfloat16"),
    (2048, 768, 128, 8, "bfloat16", "bfloat16"),
    (7168, 2048, 256, 8, "float8_e4m3fn", "fp8_block"),
    (2880, 2880, 128, 4, "mxfp4", "w4a16_mxfp4"),
    (2880, 2880, 32, 4, "mxfp4", "w4a16_mxfp4"),
)


@dataclass(frozen=True, slots=True)
class KernelTables:
    """The folder of one GPU."""

    folder: Path

    def read(self, family: str) -> pd.DataFrame | None:
        """The newest vLLM table of a family, or None. Its column `s` has seconds."""
        files = sorted(self.folder.glob(f"*vllm_*_{family}_perf.parquet"), key=lambda path: path.name)
        if not files:
            return None
        table = pd.read_parquet(files[-1])
        return table.assign(s=table["latency"] / 1e3)

    def version(self, family: str) -> str:
        return sorted(self.folder.glob(f"*vllm_*_{family}_perf.parquet"))[-1].name.split("_vllm_")[1].split("_")[0]


def fit_gpu(folder: Path) -> GpuKernels:
    """Raises ValueError, one line, where the folder has no tables of GEMM and attention."""
    tables, cache = KernelTables(folder), CACHES.get(folder.name)
    if cache is None:
        raise ValueError(f"{folder.name} is not a GPU whose L2 cache is known here; there are {', '.join(CACHES)}")
    gemm, prefill, decode = (tables.read(name) for name in ("gemm", "context_attention", "generation_attention"))
    if gemm is None or prefill is None or decode is None:
        raise ValueError(f"{folder} has no vLLM tables of gemm, context_attention and generation_attention")
    dims = sorted(set(prefill.head_dim) & set(decode.head_dim) & {64, 128})
    latent_prefill, latent_decode = tables.read("context_mla"), tables.read("generation_mla")
    moe, all_reduce = tables.read("moe"), tables.read("custom_allreduce")
    return GpuKernels(
        source=f"aiconfigurator {folder.name} (Apache-2.0), vLLM {tables.version('gemm')}",
        gemm=fit_gemm(gemm, cache),
        prefill_attention={dim: fit_prefill(prefill, dim) for dim in dims},
        decode_attention={dim: fit_decode(decode, dim, cache) for dim in dims},
        latent_prefill=None if latent_prefill is None else fit_latent_prefill(latent_prefill),
        latent_decode=None if latent_decode is None else fit_latent_decode(latent_decode),
        all_reduce={} if all_reduce is None else fit_all_reduce(all_reduce),
        experts={} if moe is None else fit_experts(moe),
    )


def fit_gemm(table: pd.DataFrame, cache: float) -> Kernel:
    t = table[
        (table.gemm_dtype == "bfloat16") & (2 * table.n * table.k > cache) & (table.n < 30_000) & (table.k < 30_000) & (table.m <= 8192)
    ]
    m, n, k = (t[name].to_numpy(float) for name in ("m", "n", "k"))
    return _kernel(t.s, 2 * m * n * k, 2 * n * k, 2 * (m * n + m * k))


def fit_prefill(table: pd.DataFrame, dim: int) -> Kernel:
    """Fitted on prompts of at least 64 tokens, because shorter ones take only the launch time."""
    t = _plain(table[(table.head_dim == dim) & (table.isl >= 64)])
    batch, tokens, heads, kv_heads = (t[name].to_numpy(float) for name in ("batch_size", "isl", "num_heads", "num_key_value_heads"))
    return _kernel(t.s, 4 * batch * heads * dim * tokens * tokens / 2, 4 * batch * tokens * dim * (heads + kv_heads))


def fit_decode(table: pd.DataFrame, dim: int, cache: float) -> DecodeKernel:
    t = _plain(table[table.head_dim == dim])
    batch, step, kv_heads = (t[name].to_numpy(float) for name in ("batch_size", "step", "num_key_value_heads"))
    kv_bytes = 4 * batch * (step + 1) * dim * kv_heads
    kept = (kv_bytes > 2 * cache) | (kv_bytes < 1e6)  # between these sizes the KV of the measurement stays in the cache
    t, kv_bytes, heads = t[kept], kv_bytes[kept], (batch * kv_heads)[kept]
    found, error, rows = _fit(t.s.to_numpy(), lambda x, i: x[0] + kv_bytes[i] / x[1] + heads[i] * x[2], (1e-5, 1e12, 2e-8))
    launch_s, bytes_per_s, head_s = found
    return DecodeKernel(launch_s, bytes_per_s, head_s, error, rows)


def fit_latent_prefill(table: pd.DataFrame) -> Kernel:
    t = _plain(table[table.isl >= 64])
    batch, tokens, heads = (t[name].to_numpy(float) for name in ("batch_size", "isl", "num_heads"))
    work = latent_prefill_work(heads, batch * tokens, 1.0, LATENT["key_dim"], LATENT["value_dim"])
    return _kernel(t.s, work[0] * batch * tokens * tokens / 2, np.asarray(work[1]))


def fit_latent_decode(table: pd.DataFrame) -> Kernel:
    t = _plain(table)
    batch, step, heads = (t[name].to_numpy(float) for name in ("batch_size", "step", "num_heads"))
    flops, read = map(np.asarray, latent_decode_work(heads, batch * (step + 1), LATENT["latent_dim"]))
    return _kernel(t.s, flops, read, batch * heads)


def fit_all_reduce(table: pd.DataFrame) -> dict[int, AllReduce]:
    fits = {}
    for gpus, t in table[table.backend == "vllm_graph"].groupby("num_gpus"):
        size = t.message_size.to_numpy(float)
        seconds, error, rows = _fit(t.s.to_numpy(), partial(_call_s, size), (5e-6, 1e11))
        launch_s, bytes_per_s = seconds
        fits[int(gpus)] = AllReduce(launch_s, bytes_per_s, error, rows)
    return fits


def _call_s(size: np.ndarray, x: np.ndarray, i: np.ndarray) -> np.ndarray:
    return np.asarray(x[0] + size[i] / x[1])


def fit_experts(table: pd.DataFrame) -> dict[str, Kernel]:
    """A fit for each expert shape in conf/model, tensor parallel, with tokens spread over experts by a power law of 1.01."""
    fits = {}
    t = table[(table.distribution == "power_law_1.01") & (table.moe_ep_size == 1) & (table.moe_tp_size <= 8)]
    for hidden, inner, experts, active, dtype, there in EXPERTS:
        s = t[
            (t.hidden_size == hidden) & (t.inter_size == inner) & (t.num_experts == experts) & (t.topk == active) & (t.moe_dtype == there)
        ]
        if len(s) < 40:
            continue
        tokens, split = (s[name].to_numpy(float) for name in ("num_tokens", "moe_tp_size"))
        work = expert_work(hidden, inner / split, experts, active, tokens, WEIGHT_BYTES[dtype])
        fits[f"{hidden}x{inner}x{experts}x{active}_{dtype}"] = _kernel(s.s, *map(np.asarray, work))
    return fits


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with KV in bfloat16 and without a window."""
    kept = table[table.kv_cache_dtype == "bfloat16"] if "kv_cache_dtype" in table else table
    return kept[kept.window_size == 0] if "window_size" in kept else kept


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

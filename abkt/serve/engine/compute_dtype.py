"""The dtype a model computes in on this machine. The KV cache keeps the model's own dtype, whatever this says.

A CPU without bf16 instructions emulates bf16 products, which takes several times as long as float32. So a product of a prefill's shape is
timed in both, once a process, in a few milliseconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import torch

CLEARLY = 1.25  # float32 must be this many times as fast as the model's dtype to be taken
REPEATS = 5
TOKENS, WIDTH = 128, 512


@dataclass(frozen=True, slots=True)
class ComputeDtype:
    """dtype: name of the dtype to compute in, such as `float32`. ratio: time of a product in the model's dtype over that in float32; nan
    where the model's dtype is float32, so that nothing was timed."""

    dtype: str
    ratio: float

    def words(self, kv_dtype: str) -> str:
        """For a plan line: what is computed in, and why."""
        if self.dtype == kv_dtype:
            return f"compute in {self.dtype}"
        return f"compute in {self.dtype}, since {kv_dtype} products take {self.ratio:.1f} times as long here; KV in {kv_dtype}"


@lru_cache
def compute_dtype(kv_dtype: str, device: str = "cpu") -> ComputeDtype:
    """The dtype in which a model of this dtype computes fastest on this device: its own, or float32 where that is clearly faster.

    Parameters
    ----------
    kv_dtype : the model's dtype, such as `bfloat16`.
    device : cpu or cuda.

    The answer is kept for the life of the process; a cluster decides once and tells its workers.
    """
    if kv_dtype == "float32":
        return ComputeDtype(kv_dtype, float("nan"))
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)  # as in a worker
    try:
        own, plain = _products_s(getattr(torch, kv_dtype), device)
    finally:
        torch.set_num_threads(threads)
    return choose_dtype(kv_dtype, own / plain)


def choose_dtype(kv_dtype: str, ratio: float) -> ComputeDtype:
    """The decision alone. ratio: time of a product in kv_dtype over that in float32."""
    return ComputeDtype("float32" if ratio > CLEARLY else kv_dtype, ratio)


def _products_s(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Median seconds of one product in `dtype` and in float32, timed in turn."""
    pairs = [
        tuple(torch.randn(shape, device=device).to(kind) for shape in ((TOKENS, WIDTH), (WIDTH, WIDTH))) for kind in (dtype, torch.float32)
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS + 1):
        for (left, right), taken in zip(pairs, times, strict=True):
            started_s = time.perf_counter()
            left @ right
            if device != "cpu":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started_s)
    own, plain = (median(taken[1:]) for taken in times)  # the first use warms up
    return own, plain

"""Medians of interleaved repeats, so that a slow moment of the machine affects everything that is compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def medians(functions: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds that each function takes on `device`: the median of `repeats` rounds, after one round that is not counted.

    On a GPU the time is that between events before and after the call. It contains time in which the GPU waits for the host, but not the
    work of the host while kernels run.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(repeats + 1):
        for name, function in functions.items():
            seconds = _on_gpu(function) if device.type == "cuda" else _on_cpu(function)
            if round_number:
                taken[name].append(seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def _on_cpu(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _on_gpu(function: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000

"""What the connector adds to a step without a transfer: `python -m experiments.vllm.overhead`. Needs no vLLM."""

from __future__ import annotations

import pickle
import time
from types import SimpleNamespace

import torch

from abkt.connect.vllm.layout import PagedKV
from abkt.connect.vllm.scheduler import SchedulerSide
from abkt.connect.vllm.settings import Settings
from abkt.connect.vllm.worker import WorkerSide

STEPS = 5000


def seconds() -> tuple[float, float]:
    """(median, 99th percentile) of a step's calls on both sides, and of pickling between them."""
    settings, found = Settings(), []
    worker = WorkerSide(settings, PagedKV(tuple(torch.zeros(64, 3, 32, 128) for _ in range(30)), "cpu", "m"))
    scheduler = SchedulerSide(settings, 32)
    output = SimpleNamespace(total_num_scheduled_tokens=1, preempted_req_ids=None)
    try:
        for _ in range(STEPS):
            start_s = time.perf_counter()
            worker.step(pickle.loads(pickle.dumps(scheduler.step(output))))
            worker.poll()
            worker.counters.take()
            found.append(time.perf_counter() - start_s)
    finally:
        worker.close()
    found.sort()
    return found[STEPS // 2], found[STEPS * 99 // 100]


if __name__ == "__main__":
    median_s, high_s = seconds()
    print(f"a step without a transfer: {median_s * 1e6:.0f} us, 99th percentile {high_s * 1e6:.0f} us, of {STEPS}")

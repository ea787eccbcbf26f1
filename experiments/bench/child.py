"""One measurement of `abkt bench sim`: `python -m experiments.bench.child WHAT REQUESTS NODES_OF_A_ROLE VARIATION` prints JSON.

WHAT is one of: speed, requests per CPU-second of building and running a simulation; files, the same for a whole `abkt simulate` with its
files, and its CPU time from the start of the interpreter and its peak memory; bare, a SimPy queue alone; imports, the imports of an empty
run.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.bench.simulator import ISL, OSL, RATE_PER_NODE


def speed(requests: int, half: int, variation: float) -> float:
    from experiments.lib.compose import compose
    from experiments.lib.config import read
    from experiments.lib.simulation import SimulateConfig, build_simulation
    from experiments.lib.workload import read_workload

    config = read(SimulateConfig, {**compose("simulate", overrides(requests, half, variation)).config, "out": Path("out")})
    made, _ = read_workload(config.workload, config.seed)
    began_s = time.process_time()
    build_simulation(config, made).run()
    return requests / (time.process_time() - began_s)


def files(requests: int, half: int, variation: float) -> float:
    from experiments.cli import dispatch

    with TemporaryDirectory() as folder:
        began_s = time.process_time()
        if dispatch(["simulate", *overrides(requests, half, variation), f"out={folder}"]):
            raise RuntimeError("abkt simulate has failed")
        return requests / (time.process_time() - began_s)


def overrides(requests: int, half: int, variation: float) -> list[str]:
    rate = RATE_PER_NODE * half
    workload = [f"requests={requests}", f"rate_per_s={rate}", f"isl={ISL}", f"osl={OSL}", f"variation={variation}"]
    return [
        *("workload=poisson", "bitrate=embedded", "routing=load_aware", "progress=false"),
        *(f"cluster.{role}={half}" for role in ("prefill", "decode")),
        *(f"workload.{key}" for key in workload),
    ]


def bare(requests: int, half: int, variation: float) -> float:
    """Prefill, wire and decode as three timeouts after two queues: the least work that a simulation in SimPy can do."""
    import simpy

    environment = simpy.Environment()
    prefill, decode = simpy.Resource(environment, half), simpy.Resource(environment, 64 * half)

    def request() -> Generator[simpy.Event, None, None]:
        with prefill.request() as turn:
            yield turn
            yield environment.timeout(0.03)
        yield environment.timeout(0.01)
        with decode.request() as place:
            yield place
            yield environment.timeout(2.0)

    def arrivals() -> Generator[simpy.Event, None, None]:
        for _ in range(requests):
            environment.process(request())
            yield environment.timeout(1 / (RATE_PER_NODE * half))

    began_s = time.process_time()
    environment.process(arrivals())
    environment.run()
    return requests / (time.process_time() - began_s)


def imports(requests: int, half: int, variation: float) -> float:
    import hydra  # noqa: F401
    import numpy  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    return 0.0


def peak_mib() -> float:
    """Peak memory of this process. Not ru_maxrss, which starts with the memory of the parent at the fork."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


WHATS: dict[str, Callable[[int, int, float], float]] = {"speed": speed, "files": files, "bare": bare, "imports": imports}


def main(arguments: list[str]) -> dict[str, Any]:
    from experiments.cli import COLLECTIONS

    gc.set_threshold(*COLLECTIONS)
    what, requests, half, variation = arguments
    rate = WHATS[what](int(requests), int(half), float(variation))
    return {"requests_per_cpu_s": rate, "cpu_s": time.process_time(), "peak_mib": peak_mib()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))

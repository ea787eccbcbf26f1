"""The processes of a sweep. Each caches the workloads that it has read, because reading a trace takes longer than a small run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import lru_cache
from multiprocessing import get_all_start_methods, get_context, get_start_method, set_start_method
from pathlib import Path
from typing import Any

from abkt.records import summarize
from experiments.lib.config import read
from experiments.lib.results import plain, write_records
from experiments.lib.simulation import SimulateConfig, build_simulation
from experiments.lib.workload import Workload, read_workload
from experiments.sweeps.journal import flat
from sim.workload.requests import Request

KEPT = 16  # most workloads in the cache


def run_all(tasks: Mapping[str, Mapping[str, Any]], workers: int, done: Callable[[str, dict[str, Any] | str], None]) -> None:
    """Run points in a pool of processes. tasks: name -> keywords of run_point. done: called with (name, figures or error) on completion."""
    if not tasks:
        return
    if get_start_method() not in get_all_start_methods():
        set_start_method("spawn", force=True)  # a worker of joblib has joblib's own method, which a new process would not find
    with ProcessPoolExecutor(min(workers, len(tasks)), get_context("spawn")) as pool:
        names = {pool.submit(run_point, **task): name for name, task in tasks.items()}
        try:
            for future in as_completed(names):
                error = future.exception()
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}" if error else ""
                done(names[future], reason or future.result())
        except BaseException:  # an interrupt, or a journal that cannot be written: start no further point
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_point(config: Mapping[str, Any], out: Path | None) -> dict[str, Any]:
    """The flat summary of one simulation. out: a folder for its records, or None."""
    simulation_config = read(SimulateConfig, {**config, "progress": False, "out": out or Path()})
    requests = _requests(json.dumps(plain(asdict(simulation_config.workload))), simulation_config.seed, simulation_config.workload)
    simulation = build_simulation(simulation_config, requests)
    began_s = time.process_time()
    result = simulation.run()
    cpu_s = time.process_time() - began_s  # wall_s also depends on other work of this machine
    if out is not None:
        write_records(out, result.requests, result.transfers)
    figures = flat(summarize(result.requests, simulation_config.slo, result.wall_s))
    return {**figures, "calls": sum(t.calls for t in result.transfers), "transfers": len(result.transfers), "cpu_s": cpu_s}


class _Kept:
    """A workload as a key of the cache, by its values: a dataclass that holds dictionaries has no hash."""

    def __init__(self, key: str, seed: int, workload: Workload) -> None:
        self.key, self.seed, self.workload = key, seed, workload

    def __hash__(self) -> int:
        return hash((self.key, self.seed))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept) and (self.key, self.seed) == (other.key, other.seed)


@lru_cache(KEPT)
def _read(kept: _Kept) -> Sequence[Request]:
    return read_workload(kept.workload, kept.seed, closed_loop=True)[0]


def _requests(key: str, seed: int, workload: Workload) -> Sequence[Request]:
    return _read(_Kept(key, seed, workload))

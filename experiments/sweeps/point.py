"""One simulation of a grid or of a search. A process caches the workloads it has read: reading a trace takes longer than a small run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from abkt.records import summarize
from experiments.lib.config import read
from experiments.lib.results import plain, write_records
from experiments.lib.simulation import SimulateConfig, build_simulation
from experiments.lib.workload import Workload, read_workload
from experiments.sweeps.journal import flat
from sim.cluster import SimulationResult
from sim.workload.requests import Request

KEPT = 16  # most workloads in the cache


def run_point(config: Mapping[str, Any], out: Path | None) -> dict[str, Any]:
    """The flat summary of one simulation. out: a folder for its records, or None."""
    simulated = configured(config, out)
    result, figures = run_requests(simulated, workload_requests(simulated))
    if out is not None:
        write_records(out, result.requests, result.transfers)
    return figures


def run_points(tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | str]:
    """Several simulations in one job. tasks: keywords of run_point. Gives the figures of each, or the reason why it failed."""
    found: list[dict[str, Any] | str] = []
    for task in tasks:
        try:
            found.append(run_point(**task))
        except Exception as error:  # noqa: BLE001  # one that fails is recorded, and the others still run
            found.append(reason(error))
    return found


def reason(error: BaseException) -> str:
    """Why a point failed, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def configured(config: Mapping[str, Any], out: Path | None = None) -> SimulateConfig:
    """The configuration of a point, whose plain values lack the keys that do not affect a result."""
    return read(SimulateConfig, {**config, "progress": False, "out": out or Path()})


def run_requests(config: SimulateConfig, requests: Sequence[Request]) -> tuple[SimulationResult, dict[str, Any]]:
    """Simulate these requests. Returns the records and the flat summary."""
    simulation = build_simulation(config, requests)
    began_s = time.process_time()
    result = simulation.run()
    cpu_s = time.process_time() - began_s  # wall_s also depends on other work of this machine
    figures = flat(summarize(result.requests, config.slo, result.wall_s))
    return result, {**figures, "calls": sum(t.calls for t in result.transfers), "transfers": len(result.transfers), "cpu_s": cpu_s}


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


def workload_requests(config: SimulateConfig) -> Sequence[Request]:
    """The requests of a configuration, from the cache where they were read before."""
    return _read(_Kept(json.dumps(plain(asdict(config.workload))), config.seed, config.workload))

"""The scale-out of a study: every routing with every bitrate, in the simulator alone."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from abkt.ranges import bound
from abkt.records import SLO
from abkt.spec import ModelSpec
from experiments.lib.config import MOST_WORKERS, BitrateConfig, ClusterConfig, Hardware, RoutingConfig, read
from experiments.lib.network import Network
from experiments.lib.progress import bar
from experiments.lib.simulation import SimulateConfig, build_simulation, rate_curves, write_result
from experiments.lib.workload import Workload, read_workload
from experiments.study.folder import scaleout


@dataclass(frozen=True, slots=True)
class ScaleOutConfig:
    """The cluster that only the simulator runs, for every routing and bitrate. workers: processes to run them in."""

    model: ModelSpec
    hardware: Hardware
    cluster: ClusterConfig
    network: Network
    workload: Workload
    slo: SLO
    bitrates: dict[str, BitrateConfig]
    routings: dict[str, RoutingConfig]
    workers: int

    def __post_init__(self) -> None:
        bound(self, "workers", least=1, most=MOST_WORKERS)
        if not self.bitrates or not self.routings:
            raise ValueError("a scale-out needs a policy in bitrates and one in routings")


def run_scaleout(plain: Mapping[str, Any], seed: int, folder: Path) -> None:
    """Run every routing with every bitrate, in plain["workers"] processes. plain: the scaleout part of the configuration."""
    shared = {key: plain[key] for key in ("model", "hardware", "cluster", "network", "workload", "slo")}
    shared |= {"seed": seed, "curves": folder / "curves.json", "progress": False}
    cells = [
        {**shared, "bitrate": bitrate, "routing": routing, "out": scaleout(folder, routing_name, bitrate_name)}
        for routing_name, routing in plain["routings"].items()
        for bitrate_name, bitrate in plain["bitrates"].items()
    ]
    with bar("scale-out", len(cells)) as progress, ProcessPoolExecutor(plain["workers"], get_context("spawn")) as pool:
        for done, future in enumerate(as_completed([pool.submit(run_cell, cell) for cell in cells]), 1):
            future.result()
            progress.update(done, len(cells))


def run_cell(values: Mapping[str, Any]) -> None:
    config = read(SimulateConfig, values)
    requests, scaling = read_workload(config.workload, config.seed)
    simulation = build_simulation(config, requests)
    result = simulation.run()
    write_result(
        config.out, result, config.slo, rate_curves(simulation.cluster), bitrate=config.bitrate, routing=config.routing, scaling=scaling
    )

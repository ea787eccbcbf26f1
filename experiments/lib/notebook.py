"""Functions for the notebooks. Each gives a simulation, a sweep, a sample of real KV, or a stored figure in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from abkt.records import columns, summarize
from experiments.figures import stored
from experiments.figures.style import sheet
from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.lib.paths import data_path
from experiments.lib.simulation import SimulateConfig, build_simulation
from experiments.lib.workload import read_workload
from experiments.sweeps.grid import axes, points
from experiments.sweeps.point import run_point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from abkt.kv.pool import Pool


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """A simulation in memory. requests, transfers: one record in each row. summary: as in summary.json."""

    requests: pd.DataFrame
    transfers: pd.DataFrame
    summary: dict[str, Any]


def simulate(*overrides: str) -> SimulatedRun:
    """`abkt simulate` with the same overrides, into memory. Raises ValueError, one line, for bad input."""
    config = read(SimulateConfig, {**compose("simulate", ["progress=false", *overrides]).config, "out": Path()})
    requests, _ = read_workload(config.workload, config.seed, closed_loop=True)
    result = build_simulation(config, requests).run()
    summary = summarize(result.requests, config.slo, result.wall_s)
    return SimulatedRun(pd.DataFrame(columns(result.requests)), pd.DataFrame(columns(result.transfers)), summary)


def sweep(grid: Sequence[str], *overrides: str) -> pd.DataFrame:
    """`abkt sweep` of a few points in this process; one row per point. grid: the axes, such as bitrate=raw,int4."""
    found = axes("sweep", grid, overrides)
    return pd.DataFrame([{**point.place, **run_point(point.config, None)} for point in points("sweep", overrides, found)])


def sample_kv() -> tuple[Pool, list[int], int]:
    """The probe's KV of held-out text: (pool, block table, tokens)."""
    from safetensors.torch import load_file

    from abkt.kv.pool import Pool
    from abkt.spec import KVLayout, ModelSpec

    sample = load_file(data_path("probe/kv_sample.safetensors"))
    layers, kv_heads, tokens, dim = sample["keys"].shape
    pool = Pool(KVLayout(ModelSpec("probe", layers, kv_heads, dim), blocks=-(-tokens // 16) + 1))
    table = list(range(pool.layout.blocks_for(tokens)))
    for layer in range(layers):
        pool.write(table, layer, 0, sample["keys"][layer], sample["values"][layer])
    return pool, table, tokens


def figure(name: str) -> Figure:
    """A figure of experiments.figures, such as fig05_validation, drawn from its stored tables."""
    module = import_module(f"experiments.figures.{name}")
    with sheet():
        drawn: Figure = module.draw({table: stored.load(data_path("figures"), table) for table in module.INPUTS})
    return drawn

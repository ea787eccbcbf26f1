"""FlowKV's heterogeneous case, simulated: cheap and strong GPUs, and which of them prefills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from abkt.policy.build import build
from abkt.records import summarize
from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.lib.simulation import SimulateConfig, build_simulation
from experiments.lib.workload import read_workload
from sim.cluster import Simulation

PAIRS = (("l20", "l20"), ("l20", "h20"), ("h20", "l20"), ("h20", "h20"))  # (prefill, decode); per dollar, L20 has more FLOPS, H20 bandwidth
OVERRIDES = ("cluster=2p2d", "network=100g", "bitrate=raw", "routing=load_aware", "workload=poisson", "workload.requests=300",
             "workload.rate_per_s=1.0", "workload.isl=4000", "workload.osl=300", "progress=false")  # fmt: skip


def rows(seed: int) -> Iterator[dict[str, object]]:
    """A row for each pair: the GPUs that prefill and decode, mean TTFT, TPOT and E2E, goodput, and USD per thousand requests."""
    configs = {kind: _config(kind, seed) for kind in ("l20", "h20")}
    for prefill, decode in PAIRS:
        config = configs[prefill]
        requests, _ = read_workload(config.workload, config.seed)
        made = {kind: build_simulation(configs[kind], requests).cluster for kind in (prefill, decode)}
        cluster = replace(made[prefill], decode=made[decode].decode)
        simulation = Simulation(cluster, requests, lambda: build(config.bitrate), build(config.routing), config.slo)  # noqa: B023
        result = simulation.run()
        found: dict[str, Any] = summarize(result.requests, config.slo, result.wall_s)
        yield {
            "prefill": prefill, "decode": decode, "ttft_s": found["ttft_s"]["mean"], "tpot_s": found["tpot_s"]["mean"],
            "e2e_s": found["e2e_s"]["mean"], "goodput_per_s": found["goodput_per_s"],
            "usd_per_1000": 1000 * found["cost_usd"] / len(result.requests),
        }  # fmt: skip


def _config(kind: str, seed: int) -> SimulateConfig:
    return read(SimulateConfig, {**compose("simulate", [f"hardware={kind}", *OVERRIDES, f"seed={seed}"]).config, "out": Path()})

"""Simulations that together use every policy, engine, transport and fault of conf: `python -m tests.sim.configurations FILE` writes all
their records, so that two versions of the code can be compared to the last bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

POISSON = ("workload=poisson", "workload.requests=300", "workload.rate_per_s=20", "workload.isl=868", "workload.osl=227")
VARIED = (*POISSON, "workload.variation=0.8", "network=5g")
TRACE = ("workload=mooncake", "workload.scaling.requests=250", "cluster=8p8d")

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "bench": (*POISSON, "bitrate=embedded", "routing=load_aware"),
    "bench_varied": (*POISSON, "workload.variation=0.8", "bitrate=embedded"),
    "fleet_slow_link": (*VARIED, "bitrate=fleet", "network.gbps=1"),
    "fleet_mid_drop": (*POISSON, "bitrate=fleet", "network=mid_drop", "network.gbps=10"),
    "embedded_oscillating": (*POISSON, "network=oscillating", "network.gbps=4", "cluster=2p2d"),
    "sixty_nodes": (*VARIED, "cluster.prefill=30", "cluster.decode=30", "workload.rate_per_s=150", "workload.requests=600"),
    "mooncake_paged": (*TRACE, "engine=paged", "routing=min_ttft", "bitrate=fleet"),
    "mooncake_chunked": (*TRACE, "engine=chunked", "routing=prefix_aware", "bitrate=kvserve", "network=1g"),
    "batched_cachegen": (*VARIED, "engine=batched", "bitrate=cachegen", "routing=power_of_two"),
    "overlapped_raw": (*VARIED, "transport=overlapped", "bitrate=raw", "routing=round_robin"),
    "overlapped_embedded": (*VARIED, "transport=overlapped", "bitrate=embedded"),
    "lossy_wan": (*VARIED, "transport=lossy", "network=wan_loss", "bitrate=embedded", "workload.requests=60"),
    "layer_wise_spectrum": (*VARIED, "transport=layer_wise", "bitrate=spectrum", "routing=least_loaded"),
    "roles_ladder": (
        *VARIED,
        "roles=load_aware",
        "admission=ladder",
        "bitrate=fleet",
        "workload.rate_per_s=100",
        "slo=interactive",
        "workload.osl=1500",
        "cluster=6p2d",
    ),
    "arrow_reject_late": (*VARIED, "roles=arrow", "admission=reject_late", "bitrate=lynx", "workload.rate_per_s=150", "slo=interactive"),
    "colocated": (*VARIED, "roles=colocated", "engine=chunked", "bitrate=int4"),
    "planned_ahead": (*VARIED, "roles=colocated", "engine=planned_ahead", "engine.grow_tokens=16", "bitrate=int4"),
    "prompts_first": (*VARIED, "roles=colocated", "engine=prompts_first", "bitrate=int4"),
    "conditional": (*VARIED, "roles=conditional", "bitrate=lossless_off", "network=25g"),
    "death": (
        *VARIED,
        "faults.deaths=[{node: decode-0, at_s: 3, back_s: 8}, {node: prefill-1, at_s: 5}]",
        "bitrate=embedded",
        "admission=reserve",
    ),
    "timeouts": (*VARIED, "faults=timeouts", "faults.timeout_s=4", "bitrate=state_machine_off", "workload.rate_per_s=60", "network.gbps=2"),
    "straggler": (*VARIED, "faults.stragglers=[{node: decode-1, at_s: 2, until_s: 7, factor: 3}]", "bitrate=oracle_profile"),
    "oracle_bandwidth": (*VARIED, "network=gradual", "network.gbps=3", "bitrate=oracle_bandwidth"),
    "link_fault": (*VARIED, "link_faults=[{link: decode-0, start_s: 2, end_s: 4}, {link: prefill-1, start_s: 1, end_s: 6, share: 0.2}]"),
    "closed_loop": (
        "workload=closed_loop",
        "workload.requests=200",
        "workload.isl=900",
        "network=5g",
        "bitrate=random_off",
        "routing=random",
    ),
    "small_memory": (
        *VARIED,
        "hardware=l4",
        "model=llama-3.1-8b",
        "engine=paged",
        "bitrate=allocated_off",
        "workload.rate_per_s=100",
        "workload.osl=1200",
        "cluster.max_batch=256",
        "cluster=2p2d",
    ),
    "mixed_gpus": (*VARIED, "hardware=l20", "+hardware@decode_hardware=h20", "bitrate=fleet"),
}


def records(overrides: tuple[str, ...]) -> dict[str, list[str]]:
    """The records of one simulation, as text that shows every bit."""
    from experiments.lib.compose import compose
    from experiments.lib.config import read
    from experiments.lib.simulation import SimulateConfig, build_simulation
    from experiments.lib.workload import read_workload

    config = read(SimulateConfig, {**compose("simulate", ["progress=false", *overrides]).config, "out": Path("out")})
    requests, _ = read_workload(config.workload, config.seed, closed_loop=True)
    result = build_simulation(config, requests).run()
    return {"requests": [repr(record) for record in result.requests], "transfers": [repr(record) for record in result.transfers]}


def main(path: Path, names: list[str]) -> None:
    path.write_text(json.dumps({name: records(CONFIGURATIONS[name]) for name in names or CONFIGURATIONS}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

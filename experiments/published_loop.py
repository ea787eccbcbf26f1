"""The same published servers run in the model itself: colocated nodes, a closed loop, prompts among decoding steps as they come.

Two nodes with twice the clients, since a cluster has a node of each role to begin with; each takes half. Overheads of an iteration and of a
request in it are those that were fitted to all rows of the engine; the third scalar, the share of prompts, is not used: it follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from abkt.capacity import Capacity
from abkt.policy.bitrate.fixed import Fixed
from abkt.policy.roles.colocated import Colocated
from abkt.policy.routing.round_robin import RoundRobin
from abkt.profile.roofline import GpuSpec, kv_tokens, profile_of
from abkt.profile.schema import RateCurve
from abkt.records import SLO
from abkt.spec import ModelSpec
from experiments.published_servers import Servers
from sim.cluster import Cluster, NodeSpec, Simulation
from sim.specs import Engine
from sim.workload import Request

PROMPT_TOKENS = 8192  # of prompts in one iteration, as the engines' defaults have it on such a GPU
ROUNDS = 4  # requests a client


def simulate(
    servers: Servers, models: dict[str, ModelSpec], gpu: GpuSpec, curves: tuple[RateCurve, ...], step: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Seconds per output token of each row. step: called after each."""
    iteration_s, request_s, _ = servers.fit()
    found = []
    for row in servers.rows.itertuples():
        model, clients = models[row.model_path], int(row.concurrency)
        instance = replace(gpu, gpus=int(row.tp_size), overhead_s=iteration_s, request_s=request_s)
        found.append(tpot_s(instance, model, curves, int(row.isl), int(row.osl), clients))
        step()
    return np.array(found)


def tpot_s(gpu: GpuSpec, model: ModelSpec, curves: tuple[RateCurve, ...], isl: int, osl: int, clients: int) -> float:
    """Mean over all requests of (last token - first token) / (osl - 1)."""
    profile = profile_of(gpu, model, curves)
    room = max(kv_tokens(gpu, model), isl + osl + 16)
    nodes = [NodeSpec(name, profile, room, Capacity.constant(1e12)) for name in ("one", "two")]
    engine = Engine(max_batch=clients, prefill_tokens=PROMPT_TOKENS, chunked=True)
    requests = [Request(i, 0.0, isl, osl) for i in range(2 * clients * ROUNDS)]
    simulation = Simulation(
        Cluster((nodes[0],), (nodes[1],), engine=engine),
        requests,
        bitrate=lambda: Fixed(8),
        routing=RoundRobin(),
        slo=SLO(1.0, 1.0),
        concurrency=2 * clients,
        roles=Colocated(),
    )
    records = simulation.run().requests
    return float(np.mean([(r.finish_s - r.prefill_token_s) / (osl - 1) for r in records]))

"""The seconds that prompts add to a token on published servers, if they run as the servers' engines run them.

Engines that run prompts together with decode steps are simulated: colocated nodes and a closed loop. There are two nodes with twice the
clients, because a cluster has at least one node of each role, and each node takes half of the clients. The time that prompts add to a token
is the TPOT of such a run minus its decode steps. Engines that stop decoding for prompts run the prompts of clients that start together in n
batches; on average (n - 1) / 2 of them run after a client's own.
"""

from __future__ import annotations

import math
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
from experiments.published.servers import Servers
from sim.cluster import Simulation
from sim.specs import ClusterSpec, EngineSpec, NodeSpec
from sim.workload.requests import Request

PROMPT_TOKENS = 8192  # prompt tokens in one iteration, the engines' default on such a GPU
ROUNDS = 4  # requests of each client
PROMPTS_FIRST = {"sglang"}
OVERHEAD_S, REQUEST_S = 1e-3, 2e-5  # overheads of the simulated runs; they are subtracted from the result


def as_engines_run(
    servers: Servers, models: dict[str, ModelSpec], gpu: GpuSpec, curves: tuple[RateCurve, ...], step: Callable[[], None] = lambda: None
) -> Servers:
    """The same rows with the seconds that prompts add, as each engine runs them. step: called after each row."""
    found = []
    for row, alone_s, all_s in zip(servers.rows.itertuples(), servers.alone_s, servers.prompts_s):
        isl, osl, together = int(row.isl), int(row.osl), int(row.together)
        if row.backend in PROMPTS_FIRST:
            batches = math.ceil(together * isl / PROMPT_TOKENS)
            found.append(all_s * (batches - 1) / (2 * batches))
        else:
            instance = replace(gpu, gpus=int(row.tp_size), overhead_s=OVERHEAD_S, request_s=REQUEST_S)
            took_s = tpot_s(instance, models[row.model_path], curves, isl, osl, int(row.concurrency))
            found.append(max(0.0, took_s - alone_s - OVERHEAD_S - REQUEST_S * together))
        step()
    return replace(servers, prompts_s=np.array(found), as_run=True)


def tpot_s(gpu: GpuSpec, model: ModelSpec, curves: tuple[RateCurve, ...], isl: int, osl: int, clients: int) -> float:
    """Mean over all requests of (last token - first token) / (osl - 1)."""
    profile = profile_of(gpu, model, curves)
    room = max(kv_tokens(gpu, model), isl + osl + 16)
    nodes = [NodeSpec(name, profile, room, Capacity.constant(1e12)) for name in ("one", "two")]
    engine = EngineSpec(max_batch=clients, prefill_tokens=PROMPT_TOKENS, chunked=True)
    requests = [Request(i, 0.0, isl, osl) for i in range(2 * clients * ROUNDS)]
    simulation = Simulation(
        ClusterSpec((nodes[0],), (nodes[1],), engine=engine),
        requests,
        bitrate=lambda: Fixed(8),
        routing=RoundRobin(),
        slo=SLO(1.0, 1.0),
        concurrency=2 * clients,
        roles=Colocated(),
    )
    records = simulation.run().requests
    return float(np.mean([(r.finish_s - r.prefill_token_s) / (osl - 1) for r in records]))

"""The rows of published servers, run through sim itself: every request, with paged memory and preemption, on the profile that
`abkt simulate` would take from conf/.

It gives what experiments.published.closed_loop steps in a hundredth of the time; the two differ where memory is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from abkt.capacity import Capacity
from abkt.policy.bitrate.fixed import Raw
from abkt.policy.roles.colocated import Colocated
from abkt.policy.routing.round_robin import RoundRobin
from abkt.profile.roofline import profile_of
from abkt.records import SLO
from experiments.published.closed_loop import CLIENT_S, Latency, Overheads
from experiments.published.rows import CURVE, Row, model_of, server_of, split_gpu
from sim.cluster import Simulation
from sim.specs import ClusterSpec, NodeSpec
from sim.workload.requests import Request

GROW_TOKENS = 16  # memory for answers is taken block by block


def simulate(row: Row, overheads: Overheads) -> Latency:
    """TTFT, TPOT and throughput of a colocated row. Raises ValueError for a row with prefill and decode workers."""
    if row.disaggregated:
        raise ValueError("rows with prefill and decode workers are not run through sim; they have no queue to step")
    server = server_of(row)
    gpu = replace(split_gpu(row), overhead_s=overheads.pass_s, request_s=overheads.request_s, first_token_s=overheads.first_token_s)
    node = NodeSpec("server", profile_of(gpu, model_of(row), (CURVE,)), server.room, Capacity.constant(1e12))
    result = Simulation(
        ClusterSpec((), (node,), engine=replace(server.engine, grow_tokens=GROW_TOKENS)),
        [Request(i, 0.0, isl, osl) for i, (isl, osl) in enumerate(row.requests)],
        bitrate=Raw,
        routing=RoundRobin(),
        slo=SLO(1.0, 1.0),
        concurrency=row.clients,
        roles=Colocated(),
        think_s=CLIENT_S,
    ).run()
    records = result.requests
    tokens, end_s = sum(record.osl for record in records), max(record.finish_s for record in records)
    return Latency(float(np.mean([r.ttft_s for r in records])), float(np.nanmean([r.tpot_s for r in records])), tokens / end_s)


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows, evenly spread over the colocated ones in order of engine, model, GPUs and clients; all of them if there are fewer."""
    ordered = sorted(
        (row for row in rows if not row.disaggregated), key=lambda row: (row.engine, row.version, row.model, row.gpus, row.clients)
    )
    picked = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[i] for i in dict.fromkeys(picked)]

"""The same requests and policy objects in both worlds: real processes on this machine, and the model fed by its profile."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from abkt.capacity import Capacity
from abkt.policy.build import build
from abkt.profile.schema import Profile
from abkt.records import SLO, RequestRecord, TransferRecord, summarize
from abkt.serve import LocalCluster, LocalClusterSpec, PlannedRoleChange
from abkt.serve.cluster import ROUND_ROBIN, STATIC
from abkt.serve.errors import ClusterError
from abkt.serve.frontend.prompt import Prompt
from experiments.lib.errors import RunError
from experiments.lib.prompts import answers
from experiments.lib.results import write_json, write_records
from sim.cluster import Simulation
from sim.specs import ClusterSpec as ModelCluster
from sim.specs import NodeSpec
from sim.transfer.transport import TransportModel
from sim.workload.requests import Request

NEAR_TIE = 1e-3  # of logits
Progress = Callable[[int, int], None]
Bitrate = Mapping[str, Any]  # a policy's configuration, as abkt.policy.build takes it
UNLIMITED = Capacity.constant(math.inf)
REBUILD_S = 0.002  # from the moment that a real worker has drained until it is ready in its other role


@dataclass(frozen=True, slots=True)
class Twin:
    """What both worlds share. isl and osl of the prompts are those of the scaled trace. usd_per_gb: of wire bytes, 10^9.

    routing, roles: configurations of policies. concurrency, changes: as in Cluster.run; for the real world alone. shared, delay_s: as in
    model_of. payload_share: of the link's bytes, those that are no packet's headers; 1 where the link itself counts none.
    """

    prompts: Sequence[Prompt]
    network: Capacity
    slo: SLO
    profile: Profile | None
    usd_per_gb: float = 0.0
    routing: Mapping[str, Any] = field(default_factory=lambda: ROUND_ROBIN)
    roles: Mapping[str, Any] = field(default_factory=lambda: STATIC)
    concurrency: int = 0
    changes: Sequence[PlannedRoleChange] = ()
    shared: bool = False
    delay_s: float = 0.0
    payload_share: float = 1.0


def run_real(twin: Twin, cluster: LocalCluster, bitrate: Bitrate, folder: Path, progress: Progress, **facts: Any) -> dict[str, Any]:
    """One policy on the real cluster; returns its summary. What was finished is written even if the run breaks (RunError)."""
    finished: list[RequestRecord] = []
    started_s = time.monotonic()
    try:
        run = cluster.run(
            twin.prompts,
            bitrate,
            twin.network,
            twin.slo,
            twin.profile,
            progress,
            finished.append,
            twin.usd_per_gb,
            routing=twin.routing,
            roles=twin.roles,
            concurrency=twin.concurrency,
            changes=twin.changes,
        )
    except ClusterError as error:
        _save(folder, "real", finished, [], twin.slo, time.monotonic() - started_s)
        raise RunError(f"{error}; {len(finished)} of {len(twin.prompts)} requests were finished and are in {folder}") from None
    except KeyboardInterrupt:
        _save(folder, "real", finished, [], twin.slo, time.monotonic() - started_s)
        raise
    facts |= {"answers": answers(twin.prompts, run.outputs), "codec": run.codec, "network": {**run.network, **facts.get("network", {})}}
    facts |= {"compute": cluster.spec.compute, "near_ties": near_ties(run.margins.values()), "roles": run.roles}
    return _save(folder, "real", run.requests, run.transfers, twin.slo, run.wall_s, **facts)


def run_model(twin: Twin, spec: LocalClusterSpec, bitrate: Bitrate, folder: Path) -> dict[str, Any]:
    """The same policy in the model: as many nodes, with the measured costs; the senders' links are the paced ones."""
    if twin.profile is None:
        raise ValueError("the model needs a profile; measure one with `abkt profile`")
    network = replace(twin.network, bytes_per_s=tuple(rate * twin.payload_share for rate in twin.network.bytes_per_s))
    cluster = model_of(spec, twin.profile, network, twin.shared, twin.usd_per_gb, twin.delay_s)
    requests = [Request(p.request_id, p.arrival_s, p.isl, p.osl) for p in twin.prompts]
    simulation = Simulation(cluster, requests, lambda: build(bitrate), build(twin.routing), twin.slo, roles=build(twin.roles))
    result = simulation.run()
    assert simulation.changes is not None
    return _save(folder, "model", result.requests, result.transfers, twin.slo, result.wall_s, roles=simulation.changes.log)


def model_of(
    spec: LocalClusterSpec, profile: Profile, network: Capacity, shared: bool = False, usd_per_gb: float = 0.0, delay_s: float = 0.0
) -> ModelCluster:
    """A real cluster as the model has it. network: what each node sends over; shared: and what it receives over, so that senders meet
    there; else that is unlimited."""
    groups = min(spec.layer_groups, profile.model.layers)

    def nodes(role: str, count: int) -> tuple[NodeSpec, ...]:
        return tuple(
            NodeSpec(f"{role}{i}", profile, spec.pool_tokens, network, inbound=network if shared else UNLIMITED) for i in range(count)
        )

    return ModelCluster(
        prefill=nodes("p", spec.prefill),
        decode=nodes("d", spec.decode),
        max_batch=spec.max_batch,
        block_tokens=spec.block_tokens,
        usd_per_gb=usd_per_gb,
        delay_s=delay_s,
        rebuild_s=REBUILD_S,
        transport=TransportModel(layer_groups=groups, staging=groups),  # the real sender holds what is encoded, however much
    )


def near_ties(margins: Iterable[Sequence[float]]) -> dict[str, float]:
    """Of all tokens: how many were chosen by less than NEAR_TIE, which the order of a sum may decide, and the least margin."""
    known = [margin for of_request in margins for margin in of_request if not math.isnan(margin)]
    return {"tokens": len(known), "below": NEAR_TIE, "count": sum(m < NEAR_TIE for m in known), "least": min(known, default=math.nan)}


def _save(
    folder: Path, world: str, requests: list[RequestRecord], transfers: list[TransferRecord], slo: SLO, wall_s: float, **facts: Any
) -> dict[str, Any]:
    write_records(folder, requests, transfers)
    summary = {**summarize(requests, slo, wall_s), "world": world, "slo": asdict(slo), **facts}
    write_json(folder / "summary.json", summary)
    return summary

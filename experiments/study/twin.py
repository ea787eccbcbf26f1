"""A twin: the same requests and policies on real processes of this machine, and in the simulator with the costs of its profile."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from abkt.capacity import Capacity
from abkt.policy.admission.reserve import Reserve
from abkt.policy.build import build
from abkt.profile.schema import Profile
from abkt.records import SLO, RequestRecord, TransferRecord, summarize
from abkt.serve import LocalCluster, LocalClusterSpec, PlannedRoleChange
from abkt.serve.cluster import ROUND_ROBIN, STATIC
from abkt.serve.errors import ClusterError
from abkt.serve.frontend.prompt import Prompt
from experiments.lib.errors import RunError
from experiments.lib.results import write_json, write_records
from experiments.models.prompts import answers
from sim.cluster import Simulation, SimulationResult
from sim.specs import ClusterSpec, NodeSpec
from sim.transfer.transport import TransportModel
from sim.workload.requests import Request

NEAR_TIE = 1e-3  # difference of the two largest logits below which rounding may decide the token
Progress = Callable[[int, int], None]
Bitrate = Mapping[str, Any]  # a policy's configuration, as abkt.policy.build takes it
UNLIMITED = Capacity.constant(math.inf)
REBUILD_S = 0.002  # from the moment at which a real worker has drained until it is ready in its other role


@dataclass(frozen=True, slots=True)
class Twin:
    """The settings that the real run and the simulated run of the same requests share.

    Parameters
    ----------
    prompts : the requests with their tokens; lengths are those of the scaled trace.
    network : capacity of the link over time.
    slo : limits of TTFT and TPOT, in seconds.
    profile : measured costs of this machine; None if the policies should start without any, which only the real run can do.
    usd_per_gb : price of 10^9 wire bytes.
    routing, roles : policies as abkt.policy.build takes them.
    concurrency, changes : as in LocalCluster.run; only the real run uses them.
    shared, delay_s : as in simulated_cluster.
    payload_share : share of the link's bytes that is payload and not packet headers; 1 for a link that is emulated in user space.
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
    """Run one policy on the real cluster; returns the summary. If the run breaks (RunError), the finished requests are still written."""
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
    facts |= {
        "compute": cluster.spec.compute,
        "compute_dtype": cluster.spec.compute_dtype().dtype,
        "near_ties": near_ties(run.margins.values()),
        "roles": run.roles,
    }
    return _save(folder, "real", run.requests, run.transfers, twin.slo, run.wall_s, **facts)


def run_simulated(twin: Twin, spec: LocalClusterSpec, bitrate: Bitrate, folder: Path) -> dict[str, Any]:
    """Run the same policy in the simulator, with as many nodes as `spec` has workers and with the measured costs; returns the summary.

    Admission reserves decode memory before prefill, as the real frontend does: it places a request only when a decode worker has room for
    prompt and answer.
    """
    result, roles = simulate(twin, spec, bitrate)
    return _save(folder, "simulated", result.requests, result.transfers, twin.slo, result.wall_s, roles=roles)


def simulate(twin: Twin, spec: LocalClusterSpec, bitrate: Bitrate) -> tuple[SimulationResult, list[tuple[float, str, str]]]:
    """The simulated run of one policy, without files: its records, and (time, node, role) of each change of roles."""
    if twin.profile is None:
        raise ValueError("the simulator needs a profile; measure one with `abkt profile`")
    network = replace(twin.network, bytes_per_s=tuple(rate * twin.payload_share for rate in twin.network.bytes_per_s))
    cluster = simulated_cluster(spec, twin.profile, network, twin.shared, twin.usd_per_gb, twin.delay_s)
    requests = [Request(p.request_id, p.arrival_s, p.isl, p.osl) for p in twin.prompts]
    simulation = Simulation(
        cluster,
        requests,
        bitrate=lambda: build(bitrate),
        routing=build(twin.routing),
        slo=twin.slo,
        roles=build(twin.roles),
        admission=Reserve(),
    )
    result = simulation.run()
    assert simulation.role_controller is not None
    return result, simulation.role_controller.log


def simulated_cluster(
    spec: LocalClusterSpec, profile: Profile, network: Capacity, shared: bool = False, usd_per_gb: float = 0.0, delay_s: float = 0.0
) -> ClusterSpec:
    """The simulated counterpart of a real cluster.

    Parameters
    ----------
    spec : the real cluster.
    profile : measured costs of every node.
    network : capacity of the link that a node sends over.
    shared : whether a node also receives over such a link, which its senders then share; otherwise it receives without a limit.
    usd_per_gb : price of 10^9 wire bytes.
    delay_s : propagation delay, each way.
    """
    groups = min(spec.layer_groups, profile.model.layers)

    def nodes(role: str, count: int) -> tuple[NodeSpec, ...]:
        return tuple(
            NodeSpec(f"{role}{i}", profile, spec.pool_tokens, network, inbound=network if shared else UNLIMITED) for i in range(count)
        )

    return ClusterSpec(
        prefill=nodes("p", spec.prefill),
        decode=nodes("d", spec.decode),
        max_batch=spec.max_batch,
        block_tokens=spec.block_tokens,
        usd_per_gb=usd_per_gb,
        delay_s=delay_s,
        rebuild_s=REBUILD_S,
        transport=TransportModel(layer_groups=groups, staging=groups),  # the real sender may hold all groups encoded
    )


def near_ties(margins: Iterable[Sequence[float]]) -> dict[str, float]:
    """How many tokens were chosen by less than NEAR_TIE, so that another order of summation could change them, and the least margin."""
    known = [margin for of_request in margins for margin in of_request if not math.isnan(margin)]
    return {"tokens": len(known), "below": NEAR_TIE, "count": sum(m < NEAR_TIE for m in known), "least": min(known, default=math.nan)}


def _save(
    folder: Path, world: str, requests: list[RequestRecord], transfers: list[TransferRecord], slo: SLO, wall_s: float, **facts: Any
) -> dict[str, Any]:
    write_records(folder, requests, transfers)
    summary = {**summarize(requests, slo, wall_s), "world": world, "slo": asdict(slo), **facts}
    write_json(folder / "summary.json", summary)
    return summary

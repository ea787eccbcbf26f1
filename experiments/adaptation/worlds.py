"""The two worlds in which a policy runs all repeats: the simulator and real processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from abkt.capacity import Capacity
from abkt.policy.admission.reserve import Reserve
from abkt.policy.build import build
from abkt.policy.routing.round_robin import RoundRobin
from abkt.profile.schema import Profile
from abkt.records import SLO, RequestRecord
from experiments.adaptation.rivals import Bitrate
from sim.cluster import Simulation
from sim.specs import ClusterSpec
from sim.workload.requests import Request

if TYPE_CHECKING:
    from abkt.serve.cluster import LocalCluster
    from abkt.serve.frontend.prompt import Prompt

World = Callable[[int, Bitrate, SLO], Sequence[RequestRecord]]  # (repeat, policy, SLO) -> records


def simulated(cluster: ClusterSpec, repeats: Sequence[Sequence[Request]]) -> World:
    """Admission reserves decode memory before prefill, as the real frontend does."""

    def run(repeat: int, bitrate: Bitrate, slo: SLO) -> Sequence[RequestRecord]:
        simulation = Simulation(cluster, repeats[repeat], lambda: build(bitrate), RoundRobin(), slo, admission=Reserve())
        return simulation.run().requests

    return run


def lone_ttft_s(cluster: ClusterSpec, isl: int) -> float:
    """TTFT in seconds of a request of `isl` tokens that is alone in this cluster and whose KV is sent raw."""
    raw = {"_target_": "abkt.policy.bitrate.fixed.Raw"}
    (record,) = simulated(cluster, [[Request(0, 0.0, isl, 2)]])(0, raw, SLO(1.0, 1.0))
    return record.ttft_s


def real(
    cluster: LocalCluster, profile: Profile, network: Capacity, repeats: Sequence[Sequence[Prompt]], progress: Callable[[], Any]
) -> World:
    """progress: called when a request has finished."""

    def run(repeat: int, bitrate: Bitrate, slo: SLO) -> Sequence[RequestRecord]:
        return cluster.run(repeats[repeat], bitrate, network, slo, profile, lambda *_: progress()).requests

    return run

"""One policy through all repeats, in the model or on real processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abkt.capacity import Capacity
from abkt.policy.build import build
from abkt.policy.routing.round_robin import RoundRobin
from abkt.profile.schema import Profile
from abkt.records import SLO, RequestRecord
from experiments.contest.rivals import Bitrate
from sim.cluster import Cluster, NodeSpec, Simulation
from sim.workload import Request

if TYPE_CHECKING:
    from abkt.serve.cluster import Cluster as RealCluster
    from abkt.serve.prompt import Prompt

World = Callable[[int, Bitrate, SLO], Sequence[RequestRecord]]  # (repeat, policy, SLO) -> records


@dataclass(frozen=True, slots=True)
class Setting:
    """senders: prefill nodes, each with a link of `capacity`; more than one also share the decode node's, which has it too."""

    profile: Profile
    capacity: Capacity
    senders: int = 1
    delay_s: float = 0.0
    pool_tokens: int = 16_384
    max_batch: int = 8


def model(setting: Setting, repeats: Sequence[Sequence[Request]]) -> World:
    unlimited = Capacity.constant(math.inf)
    cluster = Cluster(
        prefill=tuple(NodeSpec(f"p{i}", setting.profile, setting.pool_tokens, setting.capacity) for i in range(setting.senders)),
        decode=(NodeSpec("d0", setting.profile, setting.pool_tokens, setting.capacity if setting.senders > 1 else unlimited),),
        max_batch=setting.max_batch,
        delay_s=setting.delay_s,
    )

    def run(repeat: int, bitrate: Bitrate, slo: SLO) -> Sequence[RequestRecord]:
        return Simulation(cluster, repeats[repeat], lambda: build(bitrate), RoundRobin(), slo).run().requests

    return run


def real(setting: Setting, cluster: RealCluster, repeats: Sequence[Sequence[Prompt]], progress: Callable[[], Any]) -> World:
    """progress: called as each request is finished."""

    def run(repeat: int, bitrate: Bitrate, slo: SLO) -> Sequence[RequestRecord]:
        done = cluster.run(repeats[repeat], bitrate, setting.capacity, slo, setting.profile, lambda *_: progress())
        return done.requests

    return run

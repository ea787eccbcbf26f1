"""Skipping iterations by closed forms gives the same records as one event for each iteration, over whole clusters."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.embedded import Embedded
from abkt.policy.bitrate.fixed import Fixed, Raw
from abkt.policy.routing.least_loaded import LeastLoaded
from abkt.policy.routing.load_aware import LoadAwareRouting
from abkt.policy.routing.random import RandomRouting
from abkt.policy.routing.round_robin import RoundRobin
from abkt.records import SLO, RequestRecord, TransferRecord
from sim.cluster import Simulation
from sim.cost import Costs
from sim.job import Job
from sim.node.batch import Batch
from sim.node.decoding import DecodeSide
from sim.node.node import Node
from sim.node.pace import Pace
from sim.specs import ClusterSpec, NodeSpec
from sim.workload.requests import Request
from tests.sim.conftest import exact
from tests.sim.stepping import SteppingNode

SLOS = SLO(ttft_s=0.4, tpot_s=0.02)


requests = st.lists(st.tuples(st.floats(0, 1.5), st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=25).map(
    lambda rows: [Request(i, at, isl, osl) for i, (at, isl, osl) in enumerate(sorted(rows))]
)
nics = st.sampled_from(
    [Capacity.constant(3e5), Capacity.constant(2e4), Capacity.constant(math.inf), Capacity((0.0, 0.31, 0.77), (2e5, 1.3e4, 9e4), 1.013)]
)
bitrates = st.sampled_from([Raw, lambda: Fixed(4), lambda: Fixed(2), lambda: Embedded(Bandwidth(1.7e5, 0.1, 0.2))])
routings = st.sampled_from([RoundRobin, lambda: RandomRouting(3), LeastLoaded, lambda: LoadAwareRouting(SLOS.tpot_s)])


@st.composite
def clusters(draw, profile=None):
    kv = draw(st.sampled_from([400, 900, 100_000]))
    nodes = [
        tuple(NodeSpec(f"{role}{i}", profile, kv, draw(nics), 3.6) for i in range(draw(st.integers(1, 3))))
        for role in ("prefill", "decode")
    ]
    return ClusterSpec(nodes[0], nodes[1], max_batch=draw(st.integers(1, 6)), usd_per_gb=0.1)


def assert_same(left: list, right: list, kind: type) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right):
        for field in fields(kind):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(a, float):
                assert a == pytest.approx(b, rel=1e-9, abs=1e-11, nan_ok=True), (field.name, one.request_id)
            elif field.name == "wire_bytes":
                assert abs(a - b) <= 1  # rounded to whole bytes
            else:
                assert a == b, (field.name, one.request_id)


@settings(max_examples=120)
@given(data=st.data(), requests=requests, bitrate=bitrates, routing=routings)
def test_skipping_iterations_gives_the_records_of_stepping_through_them(profile, data, requests, bitrate, routing) -> None:
    cluster = data.draw(clusters(profile))
    leaping = Simulation(cluster, requests, bitrate, routing(), SLOS).run()
    stepping = Simulation(cluster, requests, bitrate, routing(), SLOS, node=SteppingNode).run()
    assert_same(leaping.requests, stepping.requests, RequestRecord)
    by_id = [sorted(result.transfers, key=lambda t: t.request_id) for result in (leaping, stepping)]
    assert_same(*by_id, TransferRecord)


def test_an_arrival_interrupts_a_skip_of_thousands_of_iterations(profile) -> None:
    """Thousands of iterations lie between two events, so a wrong root of the closed form would be off by many."""
    nic = Capacity.constant(1e9)
    cluster = ClusterSpec((NodeSpec("p", profile, 10**6, nic),), (NodeSpec("d", profile, 10**6, nic),))
    requests = [Request(0, 0.0, 100, 6000), Request(1, 7.7, 200, 3000), Request(2, 33.3, 50, 2), Request(3, 33.4, 50, 4000)]
    leaping = Simulation(cluster, requests, Raw, RoundRobin(), SLOS).run()
    stepping = Simulation(cluster, requests, Raw, RoundRobin(), SLOS, node=SteppingNode).run()
    assert_same(leaping.requests, stepping.requests, RequestRecord)


def test_a_node_with_an_empty_batch_is_idle_while_the_next_request_is_expanded(profile) -> None:
    """The last request has left the batch and another one is being expanded. Deadlines and routing then see an empty node."""
    paces: list[float] = []

    class Watched(DecodeSide):
        def expand(self, jobs: list[Job]) -> float:
            paces.append(self.tpot_s)
            return super().expand(jobs)

    class WatchedNode(Node):
        decoding_class = Watched

    nic = Capacity.constant(1e9)
    cluster = ClusterSpec((NodeSpec("p", profile, 10**4, nic),), (NodeSpec("d", profile, 10**4, nic),), max_batch=1)
    requests = [Request(i, 0.0, 100, 200) for i in range(3)]
    Simulation(cluster, requests, Raw, RoundRobin(), SLOS, node=WatchedNode).run()
    assert paces == [0.0, 0.0, 0.0]


@given(st.integers(1, 64), st.integers(64, 10**6), st.floats(0, 100), st.floats(0, 1e-6))
def test_iterations_until_a_time_equals_counting_them_one_by_one(profile, size, context, elapsed_s, growth_s) -> None:
    """iterations_until is the smallest count whose closed form reaches the time; the closed form equals the plain sum."""
    batch = Batch(
        Pace(Costs(replace(profile, fits={**profile.fits, "decode": exact({"1": 0.00311, "batch": 0.000271, "context": growth_s})})))
    )
    for _ in range(size):
        batch.heap.append((0, 0, None))  # type: ignore[arg-type]
    batch.context = context
    batch.measure()
    count = batch.iterations_until(5.0, 5.0 + elapsed_s)
    assert 5.0 + batch.leap_s(count) >= 5.0 + elapsed_s
    assert count == 0 or 5.0 + batch.leap_s(count - 1) < 5.0 + elapsed_s
    few = min(count, 50)
    assert batch.leap_s(few) == pytest.approx(math.fsum(batch.pace.piece(size, context + i * size)[0] for i in range(few)))

from __future__ import annotations

import pytest

from abkt.capacity import Capacity
from abkt.policy.bitrate.fixed import Fixed
from abkt.policy.routing.round_robin import RoundRobin
from abkt.records import SLO
from sim.cluster import Simulation
from sim.specs import ClusterSpec, NodeSpec
from sim.workload.requests import Request


def run(profile, concurrency: int, lengths: list[tuple[int, int]], kv_tokens: int = 100_000):
    nodes = [NodeSpec(name, profile, kv_tokens, Capacity.constant(1e8)) for name in ("p", "d")]
    requests = [Request(i, 0.0, isl, osl) for i, (isl, osl) in enumerate(lengths)]
    simulation = Simulation(
        ClusterSpec((nodes[0],), (nodes[1],)), requests, lambda: Fixed(8), RoundRobin(), SLO(1.0, 0.1), concurrency=concurrency
    )
    return simulation.run().requests


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_a_closed_loop_keeps_as_many_requests_open_as_it_has_clients(profile, concurrency) -> None:
    records = run(profile, concurrency, [(100 + 37 * i, 5 + i % 7) for i in range(30)])
    assert [r.request_id for r in records] == list(range(30))
    moments = sorted([(r.finish_s, -1) for r in records] + [(r.arrival_s, 1) for r in records])
    inside = 0
    for moment_s, change in moments:
        inside += change
        assert 0 <= inside <= concurrency
        if change == 1 and moment_s > 0:  # a later request arrives when another one leaves
            assert any(r.finish_s == moment_s for r in records)
    assert sum(r.arrival_s == 0 for r in records) == concurrency


def test_a_client_sends_its_next_request_when_the_last_one_is_answered(profile) -> None:
    records = run(profile, 1, [(50, 4), (60, 1), (70, 9)])
    assert [r.arrival_s for r in records] == [0.0, *(r.finish_s for r in records[:2])]


def test_a_rejected_request_frees_its_client(profile) -> None:
    records = run(profile, 1, [(50, 4), (900, 4), (900, 4), (70, 4)], kv_tokens=160)
    assert [r.outcome for r in records] == ["completed", "rejected", "rejected", "completed"]


def test_a_loop_without_clients_is_refused(profile) -> None:
    with pytest.raises(ValueError, match="at least 1 client"):
        run(profile, -1, [(50, 4)])

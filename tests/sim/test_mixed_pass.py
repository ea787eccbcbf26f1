"""What prompts and decode steps share in one pass, the front end's delay, and TTFT where one node does both; solved by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from abkt.capacity import Capacity
from abkt.policy.bitrate.fixed import Raw
from abkt.policy.roles.colocated import Colocated
from abkt.policy.routing.round_robin import RoundRobin
from abkt.profile.schema import Fit
from abkt.records import SLO
from sim.cluster import Simulation
from sim.cost import Costs
from sim.specs import ClusterSpec, EngineSpec, NodeSpec
from sim.workload.requests import Request


def table(**terms: float) -> Fit:
    names = {"one": "1", "beyond": "tokens>100"}
    return Fit(tuple(names.get(k, k) for k in terms), tuple(terms.values()), {}, {}, 0.0, 0)


def one_server(profile, requests, **engine):
    node = NodeSpec("one", profile, 10_000, Capacity.constant(1e9))
    cluster = ClusterSpec((), (node,), engine=EngineSpec(**engine))
    return Simulation(cluster, requests, Raw, RoundRobin(), SLO(1.0, 1.0), roles=Colocated(), debug=True).run().requests


def test_a_pass_reads_its_weights_once(profile) -> None:
    """A pass takes 10 ms for up to 100 tokens, which is bound by the weights, and 0.1 ms for each token beyond."""
    costs = Costs(replace(profile, fits={**profile.fits, "pass": table(one=0.010, tokens=0.0, beyond=1e-4)}))
    assert costs.shared_s(0, [50]) == 0.0
    assert costs.shared_s(8, [50]) == pytest.approx(0.010)  # 58 tokens in one pass instead of two
    assert costs.shared_s(8, [50, 30]) == pytest.approx(0.020)
    assert costs.shared_s(50, [150]) == pytest.approx(0.010 + 0.015 - 0.020)  # 200 tokens take 20 ms
    assert Costs(profile).shared_s(8, [50]) == pytest.approx(min(0.00217, Costs(profile).base_s))  # without the table: one overhead


def test_the_first_token_of_a_node_that_does_both_is_its_prompts(profile) -> None:
    record, apart = (one_server(p, [Request(0, 1.0, 100, 5)])[0] for p in (profile, profile))
    assert record.colocated
    assert record.ttft_s == pytest.approx(record.prefill_token_s - 1.0)
    assert record.ttft_decode_s == pytest.approx(record.decode_token_s - 1.0)
    assert record.ttft_decode_s > record.ttft_s
    assert record.tpot_s == pytest.approx((record.finish_s - record.prefill_token_s) / 4)
    assert replace(apart, prefill_node="another").ttft_s == apart.ttft_decode_s


def test_the_front_end_comes_before_the_prompt(profile) -> None:
    slow = replace(profile, fits={**profile.fits, "first_token": table(one=0.25)})
    plain, delayed = (one_server(p, [Request(0, 1.0, 100, 5)])[0] for p in (profile, slow))
    assert delayed.ttft_s == pytest.approx(plain.ttft_s + 0.25)
    assert delayed.queue_exposed_s == pytest.approx(0.25)
    assert delayed.tpot_s == pytest.approx(plain.tpot_s)


def test_clients_that_think_leave_the_server_alone(profile) -> None:
    node = NodeSpec("one", profile, 10_000, Capacity.constant(1e9))
    requests = [Request(i, 0.0, 100, 5) for i in range(3)]
    made = Simulation(ClusterSpec((), (node,)), requests, Raw, RoundRobin(), SLO(1.0, 1.0), concurrency=1, roles=Colocated(), think_s=2.0)
    records = made.run().requests
    assert [b.arrival_s - a.finish_s for a, b in itertools.pairwise(records)] == pytest.approx([2.0, 2.0])

"""Nodes that die, come back, are slow or change their role, and requests past their limit. The cases are worked out by hand;
test_engines.py checks the same faults on random runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from abkt.policy.bitrate.fixed import Raw
from abkt.policy.roles.base import RoleChange
from abkt.policy.roles.colocated import Colocated
from abkt.policy.roles.load_aware import LoadAwareRoles
from abkt.policy.roles.static import Static
from abkt.policy.routing.least_loaded import LeastLoaded
from abkt.policy.routing.round_robin import RoundRobin
from sim.cluster import Simulation
from sim.faults import Death, FaultPlan, Straggler
from sim.specs import EngineSpec
from sim.workload.requests import Request
from tests.sim.test_cluster import SLOS, cluster


def prompt_s(tokens: int) -> float:
    return 0.00217 + tokens * 0.000313 + tokens**2 * 1.7e-7


def run(of, requests, plan: FaultPlan, roles=None, routing=None, bitrate=Raw) -> Simulation:
    simulation = Simulation(of, requests, bitrate, routing or LeastLoaded(), SLOS, roles=roles, faults=plan, debug=True)
    simulation.run()
    return simulation


def test_a_prompt_on_a_dead_node_is_computed_again_on_another(profile) -> None:
    plan = FaultPlan((Death("p0", 0.01),))
    (record,) = run(cluster(profile, prefill=2), [Request(0, 0.0, 100, 4)], plan).records
    assert (record.outcome, record.retries, record.prefill_node) == ("completed", 1, "p1")
    assert record.queue_exposed_s == pytest.approx(0.01)  # the lost attempt counts as waiting
    assert record.prefill_token_s == pytest.approx(0.01 + prompt_s(100))


def test_a_transfer_to_a_dead_node_stops_and_is_sent_again_to_another(profile) -> None:
    """The transfer takes 64 ms from 35 ms on. The decode node dies at 50 ms: the sent bytes are lost, and another node gets all."""
    plan = FaultPlan((Death("d0", 0.05),))
    simulation = run(cluster(profile, decode=2), [Request(0, 0.0, 100, 4)], plan)
    lost, sent = simulation.transfers
    assert (lost.outcome, lost.destination, lost.finish_s) == ("failed", "d0", 0.05)
    assert lost.wire_bytes == round(1e5 * (0.05 - lost.start_s))
    assert (sent.outcome, sent.destination, sent.wire_bytes) == ("completed", "d1", 6400)
    assert simulation.records[0].retries == 1


def test_a_prefill_node_may_die_once_the_kv_has_arrived(profile) -> None:
    (record,) = run(cluster(profile), [Request(0, 0.0, 100, 60)], FaultPlan((Death("p0", 0.2),))).records
    assert (record.outcome, record.retries) == ("completed", 0)
    assert record.decode_token_s < 0.2 < record.finish_s


def test_a_request_fails_with_its_reason_after_too_many_deaths(profile) -> None:
    deaths = tuple(Death("d0", at_s, at_s + 0.02) for at_s in (0.2, 0.5))
    (record,) = run(cluster(profile), [Request(0, 0.0, 100, 500)], FaultPlan(deaths, retries=1)).records
    assert (record.outcome, record.reason) == ("failed", "node d0 died, and 1 times before")
    (other,) = run(cluster(profile), [Request(0, 0.0, 100, 500)], FaultPlan(deaths, retries=2)).records
    assert (other.outcome, other.retries) == ("completed", 2)
    assert other.prefill_token_s > 0.52  # it waited for admission until there was a decode node again


def test_waiting_requests_fail_when_no_node_is_left(profile) -> None:
    requests = [Request(i, 0.3 * i, 100, 10) for i in range(4)]
    records = run(cluster(profile), requests, FaultPlan((Death("p0", 0.5),))).records
    assert [r.outcome for r in records] == ["completed", "completed", "failed", "failed"]
    assert {r.reason for r in records[2:]} == {"no prefill node is left"}


def test_a_slow_node_takes_longer_for_work_that_begins_while_it_is_slow(profile) -> None:
    plan = FaultPlan(stragglers=(Straggler("p0", 1.0, 2.0, factor=3.0),))
    requests = [Request(0, 0.99, 100, 2), Request(1, 1.5, 100, 2), Request(2, 2.5, 100, 2)]
    busy = [r.prefill_busy_s for r in run(cluster(profile), requests, plan).records]
    assert busy == pytest.approx([prompt_s(100), 3 * prompt_s(100), prompt_s(100)])


def test_a_slow_decode_node_finishes_its_iteration_at_the_old_pace(profile) -> None:
    """Iteration i of a lone request takes b + g (100 + i). The node becomes slow within the third; the fourth takes twice as long."""
    one = run(cluster(profile), [Request(0, 0.0, 100, 8)], FaultPlan(stragglers=(Straggler("d0", 90.0),))).records[0]
    begin_s = one.finish_s - one.decode_busy_s
    steps = [0.00311 + 0.000271 + (100 + i) * 1.37e-5 for i in range(7)]
    assert one.decode_busy_s == pytest.approx(sum(steps))
    slow = FaultPlan(stragglers=(Straggler("d0", begin_s + sum(steps[:2]) + 0.001, factor=2.0),))
    record = run(cluster(profile), [Request(0, 0.0, 100, 8)], slow).records[0]
    assert record.decode_busy_s == pytest.approx(sum(steps[:3]) + 2 * sum(steps[3:]))


def test_a_request_past_its_time_limit_fails_at_any_stage_and_frees_its_memory(profile) -> None:
    """One request is in the batch, one waits for decode memory and one is in the queue. The last request is shorter and completes."""
    of = cluster(profile, kv=700)
    requests = [Request(0, 0.0, 100, 500), Request(1, 0.1, 300, 300), Request(2, 0.2, 600, 20), Request(3, 1.2, 100, 3)]
    records = run(of, requests, FaultPlan(timeout_s=1.0), routing=RoundRobin()).records
    assert [r.outcome for r in records] == ["failed", "failed", "failed", "completed"]
    assert {r.reason for r in records[:3]} == {"not done within 1 s"}


def test_a_node_that_comes_back_has_an_empty_cache(profile) -> None:
    of = replace(cluster(profile), engine=EngineSpec(hash_tokens=32))
    requests = [Request(i, 1.0 * i, 100, 3, (1, 2, 3, 4)) for i in range(4)]
    records = run(of, requests, FaultPlan((Death("p0", 1.5, 1.6),)), roles=Colocated()).records
    assert {r.prefill_node for r in records} == {"p0"}  # the first of two idle nodes
    assert [r.cached_tokens for r in records] == [0, 96, 0, 96]


class Once(Static):
    """A policy of roles that makes one change when it is first asked."""

    def __init__(self, at_s: float, change: RoleChange) -> None:
        self.period_s, self.change = at_s, change

    def decide(self, now_s, nodes):
        changes, self.change = ([self.change] if self.change else []), None
        return changes


def test_a_draining_decode_node_finishes_the_transfers_that_are_on_their_way_to_it(profile) -> None:
    """The decode node drains while bytes are on their way to it. They arrive, and it decodes to the end before it changes its role."""
    of = replace(cluster(profile, prefill=1, decode=2), rebuild_s=0.5)
    simulation = run(of, [Request(0, 0.0, 100, 4), Request(1, 0.2, 100, 4)], FaultPlan(), roles=Once(0.06, RoleChange(1, "prefill")))
    first, second = simulation.records
    assert simulation.transfers[0].start_s < 0.06 < simulation.transfers[0].finish_s
    assert (first.decode_node, first.outcome, second.decode_node) == ("d0", "completed", "d1")
    assert simulation.role_controller.log == [(0.06, "d0", ""), (pytest.approx(first.finish_s + 0.5), "d0", "prefill")]


def test_a_draining_prefill_node_hands_over_the_prompts_it_has_not_begun(profile) -> None:
    """Four long prompts are on two nodes. One is to decode from 50 ms on, during its first prompt; its second prompt goes to the other."""
    requests = [Request(i, 0.0, 250, 4) for i in range(4)]
    of = cluster(profile, prefill=2, decode=1)
    simulation = run(of, requests, FaultPlan(), roles=Once(0.05, RoleChange(0, "decode")), routing=RoundRobin())
    assert [r.prefill_node for r in simulation.records] == ["p0", "p1", "p1", "p1"]
    assert [r.outcome for r in simulation.records] == ["completed"] * 4
    assert simulation.records[0].prefill_token_s == pytest.approx(prompt_s(250))
    assert simulation.role_controller.log[-1][1:] == ("p0", "decode")


def test_roles_that_follow_the_load_relieve_an_overloaded_prefill_side(profile) -> None:
    requests = [Request(i, 0.02 * i, 250, 3) for i in range(150)]
    of = cluster(profile, prefill=2, decode=4, rate=1e6)

    def late_s(roles) -> float:
        return max(r.decode_token_s - r.arrival_s for r in run(of, requests, FaultPlan(), roles).records)

    static = late_s(Static())
    moved = late_s(LoadAwareRoles(period_s=0.1, ttft_slo_s=0.5, tpot_slo_s=0.02, lend_cycles=False))
    lent = late_s(LoadAwareRoles(period_s=0.1, ttft_slo_s=0.5, tpot_slo_s=0.02, move_nodes=False))
    assert moved < 0.6 * static
    assert lent < 0.8 * static


def test_an_arrow_switch_of_roles_takes_effect_at_once(profile) -> None:
    simulation = run(
        cluster(profile, prefill=1, decode=2),
        [Request(0, 0.0, 100, 40), Request(1, 0.3, 100, 4)],
        FaultPlan(),
        Once(0.2, RoleChange(1, "prefill", drain=False)),
    )
    assert simulation.role_controller.log == [(0.2, "d0", "prefill")]
    assert [r.decode_node for r in simulation.records] == ["d0", "d1"]
    assert simulation.records[0].finish_s > 0.2


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Death("p0", 2.0, 1.0), "0 <= at_s < back_s"),
        (lambda: Straggler("p0", 1.0, factor=0.0), "factor is 0; it must be above 0"),
        (lambda: FaultPlan(retries=-1), "retries is -1; it must be at least 0"),
        (lambda: FaultPlan(timeout_s=0.0), "timeout_s is 0; it must be above 0"),
    ],
)
def test_impossible_faults_are_refused(made, message) -> None:
    with pytest.raises(ValueError, match=message):
        made()


def test_faults_of_unknown_nodes_are_refused(profile) -> None:
    with pytest.raises(ValueError, match="there is no node p7; the nodes are p0, d0"):
        run(cluster(profile), [Request(0, 0.0, 9, 9)], FaultPlan((Death("p7", 1.0, math.inf),)))

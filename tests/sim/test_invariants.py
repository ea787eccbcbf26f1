"""A debug run stops when one of its invariants is broken."""

from __future__ import annotations

import pytest

from abkt.policy.bitrate.fixed import Raw
from abkt.policy.routing.round_robin import RoundRobin
from sim.cluster import Simulation
from sim.invariants import Audit, CheckedMemory, InvariantError
from sim.job import Job
from sim.node.decoding import DecodeSide
from sim.node.prompts import PromptSide
from sim.node.reservations import KvReservations
from sim.workload.requests import Request
from tests.sim.test_cluster import SLOS, cluster

REQUESTS = [Request(i, 0.05 * i, 100, 20) for i in range(6)]


def run(profile) -> Simulation:
    simulation = Simulation(cluster(profile, 2, 2), REQUESTS, Raw, RoundRobin(), SLOS, debug=True)
    simulation.run()
    return simulation


def test_a_correct_run_passes_and_satisfies_littles_law(profile) -> None:
    simulation = run(profile)
    span_s = max(r.finish_s for r in simulation.records)
    mean_in_system = simulation.audit.request_s / span_s
    rate, mean_s = len(REQUESTS) / span_s, sum(r.e2e_s for r in simulation.records) / len(REQUESTS)
    assert mean_in_system == pytest.approx(rate * mean_s)


def leak(reservations: KvReservations, job: Job) -> None:
    job.reservation.blocks -= 1


def release_twice(prompts: PromptSide, job: Job) -> None:
    prompts.memory.release(1)


def finish_late(decoding: DecodeSide, job: Job) -> None:
    job.finish_s += 0.25


def count_a_byte_more(decoding: DecodeSide, job: Job) -> None:
    job.transfer.wire_bytes += 1


def send_before_it_was_encoded(decoding: DecodeSide, job: Job) -> None:
    job.transfer.ready_s = job.transfer.arrived_s + 1.0


@pytest.mark.parametrize(
    ("side", "method", "fault", "law"),
    [
        (KvReservations, "close", leak, "is not empty at the end"),
        (PromptSide, "release", release_twice, "blocks are taken"),
        (DecodeSide, "finish", finish_late, "Little's law"),
        (DecodeSide, "finish", count_a_byte_more, "its transfers carried 6400"),
        (DecodeSide, "arrive", send_before_it_was_encoded, "a stage ended before it began"),
    ],
)
def test_a_broken_invariant_stops_the_run(profile, monkeypatch, side, method, fault, law) -> None:
    right = getattr(side, method)

    def wrong(it, job) -> None:
        fault(it, job)
        right(it, job)

    monkeypatch.setattr(side, method, wrong)
    with pytest.raises(InvariantError, match=law):
        run(profile)


def test_times_out_of_order_stop_the_run(profile) -> None:
    simulation = run(profile)
    simulation.records[0].prefill_token_s += 9.0
    with pytest.raises(InvariantError, match="times are out of order"):
        simulation.audit.close(simulation.nodes)


def test_reserving_more_memory_than_there_is_stops_the_run(profile) -> None:
    memory = CheckedMemory(160, 16)
    memory.reserve(10)
    with pytest.raises(InvariantError, match="11 of 10 blocks are taken"):
        memory.reserve(1)


def test_time_never_goes_back_and_no_more_requests_leave_than_came() -> None:
    audit = Audit()
    audit.came(2.0)
    with pytest.raises(InvariantError, match="comes after one at"):
        audit.left(1.0)
    audit.left(3.0)
    with pytest.raises(InvariantError, match="more requests left than came"):
        audit.left(4.0)

"""Each law of a debug run stops a run that breaks it."""

from __future__ import annotations

import pytest

from abkt.policy.bitrate.fixed import Raw
from abkt.policy.routing.round_robin import RoundRobin
from sim.cluster import Simulation
from sim.invariants import Audit, CheckedMemory, InvariantError
from sim.node.node import Node
from sim.workload.requests import Request
from tests.sim.test_cluster import SLOS, cluster

REQUESTS = [Request(i, 0.05 * i, 100, 20) for i in range(6)]


def run(profile, node: type[Node] = Node) -> Simulation:
    simulation = Simulation(cluster(profile, 2, 2), REQUESTS, Raw, RoundRobin(), SLOS, node=node, debug=True)
    simulation.run()
    return simulation


def test_a_sound_run_passes_and_little_s_law_is_counted_on_its_own(profile) -> None:
    simulation = run(profile)
    span_s = max(r.finish_s for r in simulation.records)
    mean_in_system = simulation.audit.request_s / span_s
    rate, mean_s = len(REQUESTS) / span_s, sum(r.e2e_s for r in simulation.records) / len(REQUESTS)
    assert mean_in_system == pytest.approx(rate * mean_s)


class Leaks(Node):
    def quit(self, job, held=None):
        job.decode_blocks -= 1
        super().quit(job, held)


class Twice(Node):
    def release_prompt(self, job):
        self.memory.release(1)
        super().release_prompt(job)


class Late(Node):
    def finish(self, job):
        job.record.finish_s += 0.25
        super().finish(job)


class Generous(Node):
    def finish(self, job):
        job.record.wire_bytes += 1
        super().finish(job)


class Backwards(Node):
    def arrive(self, job):
        job.wire_start_s = job.expand_start_s + 1.0
        super().arrive(job)


class Forgetful(Node):
    def arrive(self, job):
        super().arrive(job)
        job.record.prefill_token_s += 9.0


@pytest.mark.parametrize(
    ("node", "law"),
    [
        (Leaks, "is not empty at the end"),
        (Twice, "blocks are taken"),
        (Late, "Little's law"),
        (Generous, "its transfers carried 6400"),
        (Backwards, "a stage ended before it began"),
        (Forgetful, "moments are out of order"),
    ],
)
def test_a_broken_law_stops_the_run(profile, node, law) -> None:
    with pytest.raises(InvariantError, match=law):
        run(profile, node)


def test_memory_above_what_there_is(profile) -> None:
    memory = CheckedMemory(160, 16)
    memory.reserve(10)
    with pytest.raises(InvariantError, match="11 of 10 blocks are taken"):
        memory.reserve(1)


def test_time_and_counts_go_one_way(profile) -> None:
    simulation = run(profile)
    audit = Audit()
    audit.came(2.0, simulation.records[0])
    with pytest.raises(InvariantError, match="comes after one at"):
        audit.left(1.0)
    audit.left(3.0)
    with pytest.raises(InvariantError, match="more requests left than came"):
        audit.left(4.0)

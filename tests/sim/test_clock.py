from __future__ import annotations

import gc

import pytest

from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.embedded import Embedded
from abkt.policy.routing.load_aware import LoadAwareRouting
from abkt.records import SLO
from sim.clock import Clock
from sim.cluster import Simulation
from sim.timers import Wake
from sim.transfer.transport import TransportModel
from sim.workload.requests import Request
from tests.sim.test_cluster import cluster


def test_a_timer_fires_at_the_last_time_it_was_set_to() -> None:
    clock = Clock()
    wake, seen = Wake(clock), []

    def sleep():
        yield wake.at(5.0)
        seen.append(clock.now)
        yield wake.after(2.0)
        seen.append(clock.now)

    def move():
        other = Wake(clock)
        yield other.at(1.0)
        wake.at(3.0)
        yield other.at(4.0)
        wake.at(9.0)
        yield other.at(8.0)
        wake.cancel()
        wake.at(8.5)

    clock.process(sleep())
    clock.process(move())
    clock.run()
    assert seen == [3.0, 8.5]
    assert clock.now == 8.5  # the earlier entry at 9.0 s is stale and does not advance the clock


def test_events_at_the_same_time_run_in_order_of_scheduling_after_new_processes() -> None:
    clock, seen = Clock(), []

    def named(name: str, *then: str):
        seen.append(name)
        for another in then:
            clock.process(named(another))
        yield Wake(clock).at(1.0)
        seen.append(f"{name} at 1")

    clock.process(named("a", "c"))
    clock.process(named("b"))
    clock.run()
    assert seen == ["a", "b", "c", "a at 1", "b at 1", "c at 1"]


def test_an_event_in_the_past_is_refused_and_the_error_reaches_the_caller() -> None:
    clock = Clock()

    def late():
        yield Wake(clock).at(2.0)
        yield Wake(clock).at(1.0)

    clock.process(late())
    with pytest.raises(RuntimeError, match=r"an event at 1\.0 s is in the past; it is 2\.0 s"):
        clock.run()


def test_a_background_timer_does_not_count_as_work() -> None:
    clock = Clock()
    Wake(clock, background=True).at(3.0)
    moved = Wake(clock)
    moved.at(1.0)
    assert clock.has_work()
    moved.cancel()
    assert not clock.has_work()


@pytest.mark.parametrize("groups", [1, 3])
def test_a_run_creates_no_reference_cycles(profile, groups) -> None:
    """The garbage collector is off during a run, so memory in cycles would not be freed."""

    def found(count: int) -> int:
        of = cluster(profile, 2, 2, transport=TransportModel(layer_groups=groups))
        requests = [Request(i, 0.05 * i, 100, 40) for i in range(count)]
        bitrate = lambda: Embedded(Bandwidth(1e5), 0.05, 0.2, 0.2, refine_distortion=0.001)  # noqa: E731
        simulation = Simulation(of, requests, bitrate, LoadAwareRouting(), SLO(0.1, 0.02))
        gc.collect()
        assert any(t.refine_bytes for t in simulation.run().transfers)
        return gc.collect()

    assert found(120) <= found(30) + 20


def test_a_process_may_wait_for_a_simpy_event() -> None:
    clock, seen = Clock(), []

    def wait():
        yield clock.timeout(1.5)
        seen.append(clock.now)
        failed = clock.event()
        failed.fail(ValueError("a failed event"))
        yield failed

    clock.process(wait())
    with pytest.raises(ValueError, match="a failed event"):
        clock.run()
    assert seen == [1.5]
    assert clock.peek() == float("inf")

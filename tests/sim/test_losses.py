"""Lost frames, links that go down during a transfer, and transfers that are offered again or aborted."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.embedded import Embedded
from abkt.policy.bitrate.fixed import Fixed, Raw
from abkt.policy.routing.load_aware import LoadAwareRouting
from abkt.policy.routing.round_robin import RoundRobin
from abkt.records import SLO, STAGES
from sim.cluster import Simulation
from sim.faults import Death, FaultPlan, Straggler
from sim.job import Job
from sim.network.link_faults import LinkFault
from sim.timers import Wake
from sim.transfer.transport import FRAME_BYTES, TransportModel
from sim.workload.requests import Request
from tests.sim.test_cluster import Counted, Scripted, cluster, run, stream

PREFILL_S = 0.00217 + 100 * 0.000313 + 100**2 * 1.7e-7 + 100 * 1.1e-6  # and copying, of 100 tokens
ALPHA_S = 0.00047
ONE = [Request(2, 0.0, 100, 4)]


def test_a_transfer_waits_while_its_link_is_down(profile) -> None:
    plain = run(cluster(profile), ONE).transfers[0]
    of = replace(cluster(profile), link_faults=(LinkFault("d0", 0.05, 0.45),))
    (transfer,) = run(of, ONE).transfers
    assert transfer.finish_s == pytest.approx(plain.finish_s + 0.4)
    assert (transfer.retries, transfer.wire_bytes) == (0, 6400)


def test_the_policy_sees_that_its_link_became_slow(profile) -> None:
    policy = Scripted([stream(7), stream(7), stream(0)])
    of = replace(cluster(profile), link_faults=(LinkFault("p0", 0.06, 9.0, 0.1),))
    (transfer,) = run(of, ONE, lambda: policy).transfers
    assert transfer.cut < 7
    assert policy.views[2][0] == 0.06


def test_a_transfer_that_is_offered_again_continues_where_it_stopped(profile) -> None:
    """The link goes down at 0.05 s. After 0.1 s without a byte the attempt is given up, and the transfer is offered again 0.03 s later.
    This happens twice; the link is up again at the third attempt."""
    transport = TransportModel(timeout_s=0.1, backoff_s=0.03)
    of = replace(cluster(profile, transport=transport), link_faults=(LinkFault("d0", 0.05, 0.3),))
    (record,), (transfer,) = (result := run(of, ONE)).requests, result.transfers
    passed = (0.05 - PREFILL_S) * 1e5
    again_s = 0.05 + 2 * (0.1 + 0.03)
    assert (transfer.retries, transfer.resumes, transfer.outcome) == (2, 2, "completed")
    assert transfer.finish_s == pytest.approx(again_s + (6400 - passed) / 1e5 + ALPHA_S)
    assert transfer.wire_bytes == 6400
    assert sum(getattr(record, f"{stage}_exposed_s") for stage in STAGES) == pytest.approx(record.e2e_s)


def test_a_transfer_without_progress_fails_its_request_and_the_next_one_runs(profile) -> None:
    Counted.made = []
    transport = TransportModel(timeout_s=0.1, retries=2, backoff_s=0.03)
    of = replace(cluster(profile, transport=transport), link_faults=(LinkFault("d0", 0.05, 2.0),))
    with patch("sim.nodes.KvMemory", Counted):
        result = run(of, [*ONE, Request(3, 2.5, 100, 4)])
    first, second = result.requests
    assert (first.outcome, first.reason) == ("failed", "no byte passed for 0.1 s, 3 times")
    assert second.outcome == "completed"
    failed, completed = result.transfers
    assert (failed.outcome, failed.retries, failed.finish_s) == ("failed", 2, pytest.approx(0.05 + 3 * 0.1 + 2 * 0.03))
    assert 0 < failed.wire_bytes < 6400
    assert completed.outcome == "completed"
    assert all(memory.used == 0 for memory in Counted.made)


def test_lost_frames_are_sent_again(profile) -> None:
    """Raw KV of three and a half frames; every second frame is lost. A round takes the time of its bytes and a wait for the lost ones."""
    tokens = 7 * FRAME_BYTES // 2 // 64
    of = cluster(profile, rate=1e8, kv=1 << 20, transport=TransportModel(frame_loss=0.5, retry_s=0.25, seed=4))
    (transfer,) = run(of, [Request(2, 0.0, tokens, 2)]).transfers
    again = (transfer.wire_bytes - transfer.raw_bytes) / FRAME_BYTES
    assert again >= 1
    assert again == pytest.approx(round(again), abs=0.51)
    seconds = transfer.finish_s - transfer.start_s - ALPHA_S
    rounds = (seconds - transfer.wire_bytes * 1.3e-7) / 0.25  # the transport itself is slower than the link
    assert rounds == pytest.approx(round(rounds), abs=1e-6)
    assert 1 <= rounds <= again + 0.5


def test_frames_are_lost_at_the_configured_rate(profile) -> None:
    of = cluster(profile, rate=1e8, kv=1 << 22, transport=TransportModel(frame_loss=0.2))
    tokens = 40 * FRAME_BYTES // 64
    result = run(of, [Request(i, 0.0, tokens, 2) for i in range(30)])
    sent = sum(t.wire_bytes for t in result.transfers) / sum(t.raw_bytes for t in result.transfers)
    assert sent == pytest.approx(1 / 0.8, rel=0.03)  # a frame is sent 1 / (1 - p) times


BITRATES = {"raw": Raw, "int4": lambda: Fixed(4), "embedded": lambda: Embedded(Bandwidth(1e5), 0.05, 0.2, 0.2, refine_distortion=0.001)}
arrivals = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 250), st.integers(1, 40)), min_size=1, max_size=15).map(
    lambda rows: [Request(i, at, isl, osl) for i, (at, isl, osl) in enumerate(sorted(rows))]
)
faults = st.lists(
    st.tuples(st.sampled_from(["p0", "d0", "fabric"]), st.floats(0, 2), st.floats(0.01, 1), st.sampled_from([0.0, 0.0, 0.3])), max_size=4
).map(lambda rows: tuple(LinkFault(link, at, at + long, share) for link, at, long, share in rows))


@settings(max_examples=50)
@given(
    requests=arrivals,
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    bitrate=st.sampled_from(sorted(BITRATES)),
    link_faults=faults,
    transport=st.builds(
        TransportModel,
        frame_loss=st.sampled_from([0.0, 0.3]),
        retry_s=st.sampled_from([0.0, 0.02]),
        timeout_s=st.sampled_from([0.05, 0.3]),
        retries=st.integers(0, 2),
        layer_groups=st.integers(1, 3),
    ),
    delay_s=st.sampled_from([0.0, 0.01]),
)
def test_runs_with_losses_and_link_faults_keep_the_invariants(profile, requests, sizes, bitrate, link_faults, transport, delay_s) -> None:
    fabric = Capacity.constant(2e5)
    of = cluster(profile, *sizes, rate=2e5, fabric=fabric, delay_s=delay_s, transport=transport, link_faults=link_faults)
    result = run(of, requests, BITRATES[bitrate], LoadAwareRouting(), SLO(0.3, 0.02), debug=True)
    assert [r.request_id for r in result.requests] == [r.request_id for r in requests]
    moved = {t.request_id: t for t in result.transfers}
    for r in result.requests:
        assert r.outcome in ("completed", "failed")
        if r.outcome == "failed":
            assert moved[r.request_id].outcome == "failed"
            assert link_faults
            continue
        assert sum(getattr(r, f"{stage}_exposed_s") for stage in STAGES) == pytest.approx(r.e2e_s)
        assert min(getattr(r, f"{stage}_exposed_s") for stage in STAGES) >= -1e-12
        if r.osl > 1:
            assert moved[r.request_id].wire_bytes == r.wire_bytes
            if transport.frame_loss == 0 and moved[r.request_id].mode == "raw":
                assert r.wire_bytes == r.raw_bytes


@settings(max_examples=60)
@given(
    requests=arrivals,
    bitrate=st.sampled_from(sorted(BITRATES)),
    kv=st.sampled_from([320, 10_000]),
    link_faults=faults,
    transport=st.builds(TransportModel, frame_loss=st.sampled_from([0.0, 0.3]), retry_s=st.just(0.02), layer_groups=st.integers(1, 3)),
    delay_s=st.sampled_from([0.0, 0.01]),
    withdrawn=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 14)), min_size=1, max_size=6).map(sorted),
)
def test_an_aborted_transfer_releases_everything(profile, requests, bitrate, kv, link_faults, transport, delay_s, withdrawn) -> None:
    """The transfer is aborted at any time: in the queue, while it waits for memory or an answer, while it sends, between two attempts."""
    Counted.made = []
    jobs: list[Job] = []
    made = Job.__init__

    def kept(job: Job, *values: object) -> None:
        made(job, *values)
        jobs.append(job)

    of = cluster(
        profile, 2, 1, rate=2e4, kv=kv, fabric=Capacity.constant(2e4), delay_s=delay_s, transport=transport, link_faults=link_faults
    )
    with patch("sim.nodes.KvMemory", Counted), patch.object(Job, "__init__", kept):
        simulation = Simulation(of, requests, BITRATES[bitrate], RoundRobin(), SLO(0.3, 0.02))

        def withdraw():
            wake = Wake(simulation.clock)
            for at_s, index in withdrawn:
                yield wake.at(at_s)
                if index < len(jobs) and jobs[index].pair is not None and jobs[index].pair.abort(jobs[index]):
                    lost.append(index)
                    simulation._lose(jobs[index], "failed", "withdrawn")

        lost: list[int] = []
        simulation.clock.process(withdraw())
        result = simulation.run()
    assert all(memory.used == 0 for memory in Counted.made)
    assert all(pair.idle and pair.backlog_bytes == 0 and not pair.sending and not pair.refining for pair in simulation.nodes.pairs.values())
    assert all(nic.load == pytest.approx(0, abs=1e-6) for nic in simulation.nodes.nics.values())
    assert [i for i, r in enumerate(result.requests) if r.reason == "withdrawn"] == sorted(lost)


deaths = st.lists(st.tuples(st.sampled_from(["p0", "p1", "d0", "d1"]), st.floats(0, 2.5), st.floats(0.01, 1)), max_size=3).map(
    lambda rows: FaultPlan(
        deaths=tuple(Death(node, at, at + down) for node, at, down in rows), stragglers=(Straggler("p1", 0.5, 3.0, 1.5),)
    )
)


@settings(max_examples=60)
@given(
    requests=arrivals,
    bitrate=st.sampled_from(sorted(BITRATES)),
    link_faults=faults,
    plan=deaths,
    transport=st.builds(
        TransportModel,
        frame_loss=st.sampled_from([0.0, 0.3]),
        retry_s=st.sampled_from([0.0, 0.02]),
        timeout_s=st.sampled_from([0.05, 0.3]),
        layer_groups=st.integers(1, 3),
        staging=st.integers(1, 2),
    ),
    kv=st.sampled_from([320, 10_000]),
)
def test_runs_where_nodes_die_during_transfers_keep_the_invariants(profile, requests, bitrate, link_faults, plan, transport, kv) -> None:
    """Refinement and layer groups are interrupted at any time; the invariants of a debug run hold."""
    of = cluster(profile, 2, 2, rate=5e4, kv=kv, fabric=Capacity.constant(1e5), transport=transport, link_faults=link_faults)
    simulation = Simulation(of, requests, BITRATES[bitrate], LoadAwareRouting(), SLO(0.3, 0.02), faults=plan, debug=True)
    result = simulation.run()
    assert len(result.requests) == len(requests)
    assert all(pair.idle and not pair.sending and not pair.refining for pair in simulation.nodes.pairs.values())
    assert all(nic.load == pytest.approx(0, abs=1e-6) for nic in simulation.nodes.nics.values())
    for t in result.transfers:
        assert t.distortion_final <= t.distortion_start
        assert t.wire_bytes >= t.refine_bytes

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.embedded import Embedded
from abkt.policy.bitrate.fixed import Fixed, Raw
from abkt.policy.routing.least_loaded import LeastLoaded
from abkt.policy.routing.load_aware import LoadAwareRouting
from abkt.policy.routing.round_robin import RoundRobin
from abkt.policy.view import Decision, Delivered, GoodputSample, TransferView
from abkt.profile.expect import curve_for
from abkt.profile.schema import Fit
from abkt.records import SLO, STAGES, summarize
from sim.cluster import Simulation
from sim.node.memory import KvMemory
from sim.specs import ClusterSpec, NodeSpec
from sim.workload.requests import Request

SLOS = SLO(ttft_s=0.5, tpot_s=0.02)
RATE = 1e5  # bytes/s; 64 bytes of KV a token


def cluster(profile, prefill=1, decode=1, rate=RATE, kv=100_000, **more) -> ClusterSpec:
    nic = Capacity.constant(rate) if isinstance(rate, float) else rate
    p, d = (tuple(NodeSpec(f"{role}{i}", profile, kv, nic, 3.6) for i in range(n)) for role, n in (("p", prefill), ("d", decode)))
    return ClusterSpec(p, d, **more)


def run(of: ClusterSpec, requests, bitrate=Raw, routing=None, slo=SLOS, debug=False):
    return Simulation(of, requests, bitrate, routing or RoundRobin(), slo, debug=debug).run()


# -- by hand -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inbound", "share"), [(None, 0.5), (Capacity.constant(math.inf), 1.0), (Capacity.constant(RATE / 4), 0.125)])
def test_an_inbound_link_limits_what_a_node_receives(profile, inbound, share) -> None:
    """Two prefill nodes send 6,400 bytes each to one decode node: over its only link, over an unlimited inbound link, over a narrow one."""
    of = cluster(profile, prefill=2)
    of = replace(of, decode=(replace(of.decode[0], inbound=inbound),))
    result = run(of, [Request(i, 1.0, 100, 4) for i in range(2)], debug=True)
    assert [r.wire_busy_s for r in result.requests] == pytest.approx([6400 / (share * RATE) + 0.00047] * 2)


def test_one_raw_request_has_the_times_and_cost_worked_out_by_hand(profile) -> None:
    result = run(cluster(profile, usd_per_gb=2.0), [Request(7, 1.0, 100, 4)])
    (record,), (transfer,) = result.requests, result.transfers
    prefill = 0.00217 + 100 * 0.000313 + 100**2 * 1.7e-7
    encode, expand = 100 * 1.1e-6, 100 * 1.3e-6
    wire = 6400 / 1e5 + 0.00047  # the NIC is slower than the transport's own 1 / 1.3e-7; one call
    iterations = [0.00311 + 0.000271 + (100 + i) * 1.37e-5 for i in range(3)]
    start = 1.0 + prefill + encode + wire + expand
    assert record.prefill_token_s == pytest.approx(1.0 + prefill)
    assert record.decode_token_s == pytest.approx(start + iterations[0])
    assert record.finish_s == pytest.approx(start + sum(iterations))
    assert record.tpot_s == pytest.approx((iterations[1] + iterations[2]) / 2)
    busy = [
        record.prefill_busy_s,
        record.encode_busy_s,
        record.wire_busy_s,
        record.expand_busy_s,
        record.decode_busy_s,
    ]
    assert busy == pytest.approx([prefill, encode, wire, expand, sum(iterations)])
    assert [getattr(record, f"{s}_exposed_s") for s in STAGES] == pytest.approx([0, *busy])  # alone in the cluster: no stage is hidden
    assert record.cost_usd == pytest.approx((prefill + encode + expand + sum(iterations)) * 3.6 / 3600 + 6400 * 2e-9)
    assert (record.rate, record.wire_bytes, record.raw_bytes, record.distortion_start) == (16.0, 6400, 6400, 0.0)
    assert (record.prefill_node, record.decode_node, record.compute, record.outcome) == ("p0", "d0", "simulated", "completed")
    assert (transfer.request_id, transfer.mode, transfer.calls, transfer.wire_bytes) == (7, "raw", 1, 6400)
    assert math.isnan(transfer.estimate_bytes_per_s)
    assert transfer.bits_per_value == 16.0
    assert transfer.start_s == pytest.approx(1.0 + prefill + encode)
    assert transfer.finish_s == pytest.approx(start - expand)


def test_one_int4_request_has_the_times_and_bytes_worked_out_by_hand(profile) -> None:
    result = run(cluster(profile), [Request(2, 0.0, 100, 2)], lambda: Fixed(4))
    (record,), (transfer,) = result.requests, result.transfers
    curve = curve_for(profile, 100, draw=2).uniform
    wire_bytes = curve.bytes[2] * 6400
    assert record.encode_busy_s == pytest.approx(0.00017 + 100 * 1.3e-5)
    assert record.expand_busy_s == pytest.approx(0.00019 + 100 * 1.2e-5)
    assert record.wire_busy_s == pytest.approx(wire_bytes / 1e5 + 0.00047)
    assert record.rate == pytest.approx(8 * round(wire_bytes) / (100 * 32))
    assert record.distortion_token_weighted == curve.distortion[2]
    assert (transfer.order, transfer.cut, transfer.depth_bits) == ("uniform", 2, 4)
    assert record.finish_s == record.decode_token_s
    assert math.isnan(record.tpot_s)


def test_a_request_for_one_token_ends_at_prefill(profile) -> None:
    result = run(cluster(profile), [Request(0, 0.0, 50, 1)])
    (record,) = result.requests
    assert record.decode_token_s == record.prefill_token_s == record.finish_s == pytest.approx(0.00217 + 50 * 0.000313 + 2500 * 1.7e-7)
    assert not result.transfers
    assert record.wire_bytes == 0
    assert record.decode_node == ""
    assert sum(getattr(record, f"{s}_exposed_s") for s in STAGES) == pytest.approx(record.e2e_s)


def test_two_transfers_to_one_node_share_its_link(profile) -> None:
    """Two prefill nodes finish at the same time. Each gets half of the decode node's NIC, so both transfers take twice as long."""
    result = run(cluster(profile, prefill=2), [Request(0, 0.0, 100, 2), Request(1, 0.0, 100, 2)])
    assert [r.wire_busy_s for r in result.requests] == pytest.approx([2 * 0.064 + 0.00047] * 2)
    narrow = cluster(profile, prefill=2, decode=2, fabric=Capacity.constant(0.5e5))
    assert [r.wire_busy_s for r in run(narrow, [Request(0, 0.0, 100, 2), Request(1, 0.0, 100, 2)]).requests] == pytest.approx([0.25647] * 2)


def test_a_pair_of_nodes_sends_one_transfer_at_a_time(profile) -> None:
    first, second = run(cluster(profile, rate=1e4), [Request(0, 0.0, 100, 2), Request(1, 0.0, 10, 2)]).transfers
    assert (first.request_id, second.request_id) == (0, 1)
    assert second.start_s == first.finish_s


def test_a_transport_slower_than_the_link_limits_the_flow(profile) -> None:
    slow = replace(profile, fits={**profile.fits, "transport": Fit(("calls", "bytes"), (0.001, 1e-4), {}, {}, 0.0, 0)})
    (record,) = run(cluster(slow), [Request(0, 0.0, 100, 2)]).requests
    assert record.wire_busy_s == pytest.approx(6400 * 1e-4 + 0.001)


def test_a_transfer_waits_for_memory_for_the_whole_answer(profile) -> None:
    """The decode node has memory for one request. The second transfer starts when the first request is finished."""
    of = cluster(profile, prefill=2)
    tight = replace(of, decode=(replace(of.decode[0], kv_tokens=150),))
    first, second = run(tight, [Request(0, 0.0, 100, 20), Request(1, 0.0, 100, 20)]).requests
    assert second.expand_exposed_s < 0.1
    assert second.wire_exposed_s > second.wire_busy_s
    assert second.finish_s - second.decode_busy_s - second.expand_busy_s - second.wire_busy_s == pytest.approx(first.finish_s)


def test_prefill_memory_is_held_until_the_transfer_is_acknowledged(profile) -> None:
    of = cluster(profile, rate=1e3)
    tight = replace(of, prefill=(replace(of.prefill[0], kv_tokens=112),))
    result = run(tight, [Request(0, 0.0, 100, 2), Request(1, 0.0, 100, 2)])
    second = result.requests[1]
    assert second.prefill_token_s - second.prefill_busy_s == pytest.approx(result.transfers[0].finish_s)


def test_a_request_that_never_fits_is_rejected_and_the_others_run(profile) -> None:
    result = run(cluster(profile, kv=160), [Request(0, 0.0, 150, 20), Request(1, 0.0, 170, 1), Request(2, 0.0, 100, 20)])
    assert [r.outcome for r in result.requests] == ["rejected", "rejected", "completed"]
    assert result.requests[0].reason == "needs 170 tokens of KV; the largest decode node holds 160"
    assert result.requests[1].reason == "needs 170 tokens of KV; the largest prefill node holds 160"
    assert summarize(result.requests, SLOS, 0.0)["requests"] == {"initiated": 3, "completed": 1, "rejected": 2, "failed": 0}


def test_a_large_request_is_routed_to_a_node_with_enough_memory(profile) -> None:
    of = cluster(profile, prefill=2, decode=3)
    mixed = replace(of, decode=(*(replace(d, kv_tokens=64) for d in of.decode[:2]), of.decode[2]))
    result = run(mixed, [Request(i, 0.0, 100, 5) for i in range(4)], routing=LeastLoaded())
    assert {r.decode_node for r in result.requests} == {"d2"}


def test_a_request_outside_the_measured_range_is_flagged(profile) -> None:
    result = run(cluster(profile), [Request(0, 0.0, 1001, 2), Request(1, 9.0, 1000, 2)])
    assert [r.extrapolated for r in result.requests] == [True, False]
    crowd = [Request(i, 0.0, 10, 500) for i in range(40)]
    assert any(r.extrapolated for r in run(cluster(profile), crowd).requests)  # more than 32 in the batch
    assert not any(r.extrapolated for r in run(cluster(profile, max_batch=32), crowd).requests)


# -- the policy in the loop --------------------------------------------------------------------------------------------------------


@dataclass
class Scripted:
    """A policy that returns given decisions in turn and records the views that it was given."""

    decisions: list[Decision]
    views: list[tuple[float, TransferView]] = field(default_factory=list)
    samples: list[GoodputSample] = field(default_factory=list)
    done: list[Delivered] = field(default_factory=list)

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        self.samples.append(sample)

    def delivered(self, now_s: float, done: Delivered) -> None:
        self.done.append(done)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        self.views.append((now_s, view))
        return self.decisions.pop(0) if len(self.decisions) > 1 else self.decisions[0]

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return 123.0


def stream(cut: int) -> Decision:
    return Decision("stream", "slope", cut)


def test_the_policy_may_move_the_cut_each_time_it_is_reached(profile) -> None:
    policy = Scripted([stream(1), stream(1), stream(4), stream(4)])
    result = run(cluster(profile), [Request(3, 0.0, 100, 2)], lambda: policy)
    own = curve_for(profile, 100, draw=3).slope.scaled(6400)
    (transfer,), (record,) = result.transfers, result.requests
    assert transfer.cut == 4
    assert transfer.wire_bytes == round(own.bytes[4])
    assert record.distortion_start == own.distortion[4]
    assert transfer.slope == pytest.approx((own.distortion[3] - own.distortion[4]) / (own.bytes[4] - own.bytes[3]))
    assert transfer.estimate_bytes_per_s == 123.0
    (done,) = policy.done
    assert (done.distortion, done.decision, done.view) == (own.distortion[4], stream(1), policy.views[0][1])
    assert done.seconds == pytest.approx(record.encode_busy_s + record.wire_busy_s)
    assert [view.sent_cut for _, view in policy.views] == [0, 0, 1, 4]
    assert [view.sent_bytes for _, view in policy.views] == pytest.approx([0, 0, own.bytes[1], own.bytes[4]])
    assert policy.views[0][1].slope == curve_for(profile, 100).slope.scaled(6400)  # before encoding the policy sees the nearest curve
    assert policy.views[1][1].slope == own
    assert policy.views[1][1].encode_s == 0.0 < policy.views[0][1].encode_s
    assert policy.views[0][1].deadline_s == pytest.approx(0.5 - (0.00311 + 0.000271 + 100 * 1.37e-5))
    assert sum(s.wire_bytes for s in policy.samples) == pytest.approx(own.bytes[4])
    assert all(s.wire_bytes / s.duration_s == pytest.approx(1e5) for s in policy.samples)


def test_the_policy_is_asked_again_when_its_rate_changes_and_may_end_the_transfer_early(profile) -> None:
    """The link falls to a tenth during the transfer. The policy falls back to the coarsest cut that covers the bytes already sent."""
    drop_s = 0.06
    policy = Scripted([stream(7), stream(7), stream(0)])
    of = cluster(profile, rate=Capacity((0.0, drop_s), (1e5, 1e4)))
    (transfer,) = run(of, [Request(0, 0.0, 100, 2)], lambda: policy).transfers
    own = curve_for(profile, 100, draw=0).slope.scaled(6400)
    sent = (drop_s - transfer.start_s) * 1e5
    covering = next(cut for cut, size in enumerate(own.bytes) if size >= sent)
    assert 0 < covering < 7
    assert transfer.cut == covering
    assert policy.views[2][0] == drop_s
    assert policy.views[2][1].sent_bytes == pytest.approx(sent)
    assert policy.views[2][1].sent_cut == covering
    assert transfer.finish_s == pytest.approx(drop_s + (own.bytes[covering] - sent) / 1e4 + 0.00047)
    assert [s.wire_bytes / s.duration_s for s in policy.samples] == pytest.approx([1e5, 1e4])


def test_an_encoded_stream_keeps_its_mode_and_never_exceeds_its_encoded_depth(profile) -> None:
    late_raw = Scripted([stream(3), Decision("raw")])
    (transfer,) = run(cluster(profile), [Request(0, 0.0, 100, 2)], lambda: late_raw).transfers
    assert transfer.mode == "stream"
    assert transfer.cut == 7
    shallow = Scripted([Decision("stream", "uniform", 1, depth_bits=4), Decision("stream", "uniform", 3, depth_bits=8)])
    (transfer,) = run(cluster(profile), [Request(0, 0.0, 100, 2)], lambda: shallow).transfers
    assert transfer.cut == 2


def test_embedded_sends_fewer_bits_over_a_slower_link(profile) -> None:
    def bits(rate: float) -> float:
        requests = [Request(i, 2.0 * i, 200, 3) for i in range(6)]
        result = run(cluster(profile, rate=rate), requests, lambda: Embedded(Bandwidth(rate), 0.01, 0.3, 0.3), slo=SLO(0.3, 0.02))
        return sum(r.rate for r in result.requests) / 6

    assert bits(5e3) < bits(1e4) < bits(3e4) < bits(5e9) == 16.0


# -- laws over random runs ---------------------------------------------------------------------------------------------------------


class Counted(KvMemory):
    """Memory that checks its range at each change. All instances are recorded, to check that they are empty at the end."""

    made: list[Counted]

    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        self.made.append(self)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "used":
            assert 0 <= value <= self.blocks
        super().__setattr__(name, value)


arrivals = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 250), st.integers(1, 40)), min_size=1, max_size=30).map(
    lambda rows: [Request(i, at, isl, osl) for i, (at, isl, osl) in enumerate(sorted(rows))]
)
BITRATES = {"raw": Raw, "int4": lambda: Fixed(4), "embedded": lambda: Embedded(Bandwidth(1e5, 0.1, 0.2))}


@settings(max_examples=60)
@given(
    requests=arrivals,
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kv=st.sampled_from([160, 320, 10_000]),
    rate=st.sampled_from([2e4, 2e5, Capacity((0.0, 0.4), (3e5, 2e4), 0.9)]),
    bitrate=st.sampled_from(sorted(BITRATES)),
    routing=st.sampled_from([RoundRobin, LeastLoaded, LoadAwareRouting]),
    max_batch=st.integers(1, 8),
)
def test_every_run_has_consistent_records_and_releases_its_memory(profile, requests, sizes, kv, rate, bitrate, routing, max_batch) -> None:
    Counted.made = []
    of = cluster(profile, *sizes, rate=rate, kv=kv, max_batch=max_batch)
    with patch("sim.nodes.KvMemory", Counted):
        result = run(of, requests, BITRATES[bitrate], routing())
    assert all(memory.used == 0 for memory in Counted.made)
    assert [r.request_id for r in result.requests] == [r.request_id for r in requests]
    done = [r for r in result.requests if r.outcome == "completed"]
    assert all(r.outcome == "rejected" and max(r.isl, r.isl + r.osl if r.osl > 1 else 0) > kv for r in result.requests if r not in done)
    for r in done:
        exposed = [getattr(r, f"{stage}_exposed_s") for stage in STAGES]
        assert sum(exposed) == pytest.approx(r.e2e_s)
        assert min(exposed) >= -1e-12
        for stage in STAGES[1:]:  # a stage cannot have worked longer than the request was in it
            assert getattr(r, f"{stage}_busy_s") <= getattr(r, f"{stage}_exposed_s") + 1e-9
        assert r.arrival_s < r.prefill_token_s <= r.decode_token_s <= r.finish_s
    moved = {t.request_id: t for t in result.transfers}
    assert sorted(moved) == sorted(r.request_id for r in done if r.osl > 1)
    assert sum(t.wire_bytes for t in result.transfers) == sum(r.wire_bytes for r in done)
    assert all(t.wire_bytes == t.raw_bytes for t in result.transfers if t.mode == "raw")
    by_prefill, by_pair = defaultdict(list), defaultdict(list)
    for r in done:
        start_s = r.prefill_token_s - r.prefill_busy_s
        by_prefill[r.prefill_node].append((start_s, r.prefill_token_s + r.encode_busy_s))
    for t in result.transfers:
        by_pair[t.source, t.destination].append((t.start_s, t.finish_s))
    for spans in (*by_prefill.values(), *by_pair.values()):  # one prompt at a time, one transfer at a time, in order
        assert all(before[1] <= after[0] + 1e-9 for before, after in zip(sorted(spans), sorted(spans)[1:]))


@pytest.mark.parametrize("bitrate", BITRATES)
@pytest.mark.parametrize("routing", [LeastLoaded, LoadAwareRouting])
def test_the_same_inputs_give_the_same_records(profile, bitrate, routing) -> None:
    requests = [Request(i, 0.01 * i, 20 + 37 * i % 200, 1 + 11 * i % 30) for i in range(60)]
    first, second = (run(cluster(profile, 2, 3), requests, BITRATES[bitrate], routing()) for _ in range(2))
    assert repr(first.requests) == repr(second.requests)
    assert repr(first.transfers) == repr(second.transfers)


def test_progress_counts_every_request(profile) -> None:
    seen: list[tuple[int, int, float]] = []
    Simulation(cluster(profile), [Request(i, i, 9, 9) for i in range(10)], Raw, RoundRobin(), SLOS).run(lambda *now: seen.append(now))
    assert [done for done, _, _ in seen] == list(range(1, 11))
    assert {total for _, total, _ in seen} == {10}
    assert [at for _, _, at in seen] == sorted(at for _, _, at in seen)


def test_records_collected_during_a_run_equal_those_collected_at_its_end(profile) -> None:
    """The first request is long. Later ones end before it, and their records wait so that all are collected in order of arrival."""
    requests = [Request(0, 0.0, 250, 60), *(Request(i, 0.02 * i, 20, 2) for i in range(1, 30))]
    whole = run(cluster(profile, 2, 2), requests)
    simulation = Simulation(cluster(profile, 2, 2), requests, Raw, RoundRobin(), SLOS)
    taken = []
    rest = simulation.run(lambda *_: taken.append(simulation.take()))
    assert any(not records for records, _ in taken)
    assert sum(map(len, (records for records, _ in taken))) > 0
    assert [*(r for records, _ in taken for r in records), *rest.requests] == whole.requests
    assert repr([*(t for _, transfers in taken for t in transfers), *rest.transfers]) == repr(whole.transfers)


# -- bad input ---------------------------------------------------------------------------------------------------------------------


def test_impossible_clusters_are_refused(profile) -> None:
    good = cluster(profile)
    with pytest.raises(ValueError, match="no decode node"):
        replace(good, decode=())
    with pytest.raises(ValueError, match="no prefill node"):
        run(replace(good, prefill=()), [Request(0, 0.0, 5, 5)])
    with pytest.raises(ValueError, match="same name"):
        replace(good, prefill=good.prefill * 2)
    with pytest.raises(ValueError, match="p0 holds 15 tokens of KV, less than one block"):
        cluster(profile, kv=15)
    with pytest.raises(ValueError, match="max_batch is 0"):
        replace(good, max_batch=0)
    other = replace(profile, model=replace(profile.model, layers=3))
    with pytest.raises(ValueError, match="same model"):
        replace(good, decode=cluster(other).decode)


def test_runs_with_impossible_settings_are_refused(profile) -> None:
    with pytest.raises(ValueError, match="order of arrival"):
        run(cluster(profile), [Request(0, 1.0, 5, 5), Request(1, 0.5, 5, 5)])
    with pytest.raises(ValueError, match="no requests"):
        run(cluster(profile), [])
    with pytest.raises(ValueError, match="no table encode/raw"):
        run(cluster(replace(profile, fits={k: v for k, v in profile.fits.items() if k != "encode/raw"})), [Request(0, 0.0, 5, 5)])


def test_a_stuck_run_says_where_its_requests_are(profile) -> None:
    simulation = Simulation(cluster(profile), [Request(i, 0.0, 100, 9) for i in range(3)], Raw, RoundRobin(), SLOS)
    memory = simulation.nodes.all[0].memory
    memory.reserve(memory.blocks)  # memory that is never released
    with pytest.raises(
        RuntimeError, match=r"0 of 3 requests done.*p0: idle, 3 prompts, .*6250 of 6250 blocks taken, 1 waiting for some; d0: idle"
    ):
        simulation.run()

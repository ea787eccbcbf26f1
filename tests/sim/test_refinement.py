"""Refinement after decoding has started: cases worked out by hand, and invariants of random runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.embedded import Embedded
from abkt.policy.bitrate.fleet import Fleet
from abkt.policy.routing.load_aware import LoadAwareRouting
from abkt.policy.routing.round_robin import RoundRobin
from abkt.policy.view import Decision, Refined, TransferView
from abkt.profile.expect import curve_for
from abkt.records import SLO, STAGES
from sim.workload.requests import Request
from tests.sim.test_cluster import Counted, Scripted, cluster, run

START_S = 0.00217 + 100 * 0.000313 + 100**2 * 1.7e-7 + 0.00023 + 100 * 1.9e-5  # prefill and encoding of 100 tokens
ALPHA_S = 0.00047


@dataclass
class Behind(Scripted):
    """A policy that starts at `cut` and refines to the cuts of `behind` in turn."""

    decisions: list[Decision] = field(default_factory=list)
    cut: int = 1
    behind: list[int] = field(default_factory=lambda: [7])
    ended: list[Refined] = field(default_factory=list)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        self.views.append((now_s, view))
        if view.started and len(self.behind) > 1:
            return Decision("stream", "slope", self.cut, refine_to_cut=self.behind.pop(0))
        return Decision("stream", "slope", self.cut, refine_to_cut=self.behind[0])

    def refined(self, now_s: float, done: Refined) -> None:
        self.ended.append(done)


def own(profile, draw: int = 0):
    return curve_for(profile, 100, draw).slope.scaled(6400)


def iterations_s(context: int, count: int) -> float:
    return sum(0.00311 + 0.000271 + (context + i) * 1.37e-5 for i in range(count))


def expand_s(bits: float) -> float:
    """The time to expand 100 tokens at a measured depth, or interpolated between 2 and 4 bits or between 4 and 8 bits."""
    two, four, eight = 0.00011 + 100 * 0.9e-5, 0.00019 + 100 * 1.2e-5, 0.00029 + 100 * 1.7e-5
    return two if bits <= 2 else two + (four - two) * (bits - 2) / 2 if bits <= 4 else four + (eight - four) * (bits - 4) / 4


def test_one_refined_request_has_the_times_and_distortion_worked_out_by_hand(profile) -> None:
    policy = Behind()
    result = run(cluster(profile, usd_per_gb=3.0), [Request(0, 0.0, 100, 41)], lambda: policy)
    (record,), (transfer,) = result.requests, result.transfers
    curve = own(profile)
    start_s = START_S + curve.bytes[1] / 1e5 + ALPHA_S
    assert transfer.finish_s == pytest.approx(start_s)
    refined_s = start_s + (curve.bytes[7] - curve.bytes[1]) / 1e5 + ALPHA_S
    assert transfer.refine_finish_s == pytest.approx(refined_s)
    assert transfer.refine_bytes == round(curve.bytes[7] - curve.bytes[1])
    assert transfer.wire_bytes == record.wire_bytes == pytest.approx(curve.bytes[7], abs=1)
    assert (transfer.cut, transfer.calls) == (1, 2)
    first_s = start_s + expand_s(0.5)
    before = next(k for k in range(41) if first_s + iterations_s(100, k) >= refined_s)  # iterations before the refined values arrive
    assert 0 < before < 40
    assert record.finish_s == pytest.approx(first_s + iterations_s(100, 40) + expand_s(8.0))
    assert (record.distortion_start, record.distortion_final) == (curve.distortion[1], curve.distortion[7])
    weighted = (before * curve.distortion[1] + (40 - before) * curve.distortion[7]) / 40
    assert record.distortion_token_weighted == pytest.approx(weighted)
    assert (transfer.distortion_start, transfer.distortion_final) == (curve.distortion[1], curve.distortion[7])
    assert policy.ended == [Refined(curve.distortion[1], record.distortion_token_weighted)]
    assert policy.done[0].distortion == curve.distortion[1]
    gpu_s = record.prefill_busy_s + record.encode_busy_s + record.expand_busy_s + record.decode_busy_s + expand_s(8.0)
    assert record.cost_usd == pytest.approx(gpu_s * 3.6 / 3600 + curve.bytes[7] * 3e-9, rel=1e-4)
    started = [view for _, view in policy.views if view.started]
    assert [view.sent_cut for view in started] == [1, 7]
    assert all(view.sent_bytes == pytest.approx(curve.bytes[view.sent_cut]) for view in started)
    assert not any(view.started for _, view in policy.views[: -len(started)])
    assert {view.price for view in started} == {0.0}  # a refinement delays no other transfer
    assert all(view.price > 0 for _, view in policy.views[: -len(started)])
    assert sum(s.wire_bytes for s in policy.samples) == pytest.approx(
        curve.bytes[1]
    )  # a refinement's rate is no sample of the link's goodput


def test_the_cut_to_refine_to_may_move_during_refinement(profile) -> None:
    """The policy is asked when refinement starts, when the link gets faster, and at the cut. It answers 3, then 4, then 6, and 6 again."""
    policy = Behind(behind=[3, 4, 6, 6])
    of = cluster(profile, rate=Capacity((0.0, 0.06), (1e5, 2e5)))
    (transfer,) = run(of, [Request(0, 0.0, 100, 60)], lambda: policy).transfers
    curve = own(profile)
    assert transfer.refine_bytes == round(curve.bytes[6] - curve.bytes[1])
    assert transfer.distortion_final == curve.distortion[6]
    assert not policy.behind[1:]


def test_a_new_transfer_of_the_same_pair_goes_before_refinement(profile) -> None:
    """The second request's transfer interrupts the first one's refinement, which continues after it."""
    first, second = Request(0, 0.0, 100, 200), Request(12, 0.0, 100, 200)

    def transfers(*requests, behind=7):
        return {t.request_id: t for t in run(cluster(profile, rate=3e4), requests, lambda: Behind(behind=[behind])).transfers}

    alone, plain, both = transfers(first), transfers(first, second, behind=0), transfers(first, second)
    assert plain[12].finish_s == both[12].finish_s < alone[0].refine_finish_s  # as early as without refinement
    assert both[0].refine_finish_s == pytest.approx(alone[0].refine_finish_s + own(profile, 12).bytes[1] / 3e4)
    assert both[12].refine_finish_s == pytest.approx(both[0].refine_finish_s + both[12].refine_bytes / 3e4, abs=1e-4)


def test_transfers_of_other_pairs_go_before_refinement_on_a_shared_link(profile) -> None:
    """Two prefill nodes send to one decode node. Its link serves the urgent transfer alone, as if there were no refinement."""
    requests = [Request(0, 0.0, 100, 200), Request(12, 0.02, 100, 200)]
    refining = {t.request_id: t for t in run(cluster(profile, prefill=2), requests, Behind).transfers}
    plain = {t.request_id: t for t in run(cluster(profile, prefill=2), requests, lambda: Behind(behind=[0])).transfers}
    assert refining[12].finish_s == plain[12].finish_s
    assert refining[0].refine_finish_s > refining[12].finish_s


def test_refinement_ends_with_its_request(profile) -> None:
    """Four tokens are decoded long before the rest could arrive over a slow link. No memory stays reserved."""
    Counted.made = []
    with patch("sim.nodes.KvMemory", Counted):
        result = run(cluster(profile, rate=2e4), [Request(0, 0.0, 100, 5), Request(1, 5.0, 100, 5)], Behind)
    for record, transfer in zip(result.requests, result.transfers):
        assert math.isnan(transfer.refine_finish_s)
        assert 0 < transfer.refine_bytes < own(profile, record.request_id).bytes[7]
        assert transfer.refine_bytes == pytest.approx((record.finish_s - transfer.finish_s) * 2e4, abs=1)
        assert record.distortion_token_weighted == record.distortion_final == record.distortion_start
        assert record.wire_bytes == transfer.wire_bytes
    assert all(memory.used == 0 for memory in Counted.made)


def test_there_is_no_refinement_without_memory_for_the_codes(profile) -> None:
    """Codes of 8 bits take half of the KV's memory: 4 blocks for 7. The answer takes 9 blocks."""
    for kv, refined in ((12 * 16, False), (13 * 16, True)):
        (transfer,) = run(cluster(profile, kv=kv), [Request(0, 0.0, 100, 41)], Behind).transfers
        assert (transfer.refine_bytes > 0) == refined


def test_the_prefill_node_holds_the_kv_until_the_last_byte_of_refinement(profile) -> None:
    """The prefill node has memory for one prompt. The second prompt begins when the first is refined."""
    of = cluster(profile)
    tight = replace(of, prefill=(replace(of.prefill[0], kv_tokens=112),))
    result = run(tight, [Request(0, 0.0, 100, 90), Request(12, 0.0, 100, 2)], Behind)
    first = next(t for t in result.transfers if t.request_id == 0)
    second = result.requests[1]
    assert second.prefill_token_s - second.prefill_busy_s == pytest.approx(first.refine_finish_s)


OURS = {
    "embedded": lambda: Embedded(Bandwidth(1e5), 0.1, 0.2, 0.2, refine_distortion=0.001),
    "fleet": lambda: Fleet(Bandwidth(1e5), 0.1, 0.2, 0.2, refine_distortion=0.001),
}
arrivals = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 250), st.integers(1, 60)), min_size=1, max_size=25).map(
    lambda rows: [Request(i, at, isl, osl) for i, (at, isl, osl) in enumerate(sorted(rows))]
)


@settings(max_examples=60)
@given(
    requests=arrivals,
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    kv=st.sampled_from([320, 640, 10_000]),
    rate=st.sampled_from([2e4, 2e5, Capacity((0.0, 0.4), (3e5, 2e4), 0.9)]),
    bitrate=st.sampled_from(sorted(OURS)),
    delay_s=st.sampled_from([0.0, 0.013]),
)
def test_runs_with_refinement_keep_the_invariants(profile, requests, sizes, kv, rate, bitrate, delay_s) -> None:
    of = cluster(profile, *sizes, rate=rate, kv=kv, delay_s=delay_s)
    result = run(of, requests, OURS[bitrate], LoadAwareRouting(), SLO(0.3, 0.02), debug=True)
    moved = {t.request_id: t for t in result.transfers}
    assert sorted(moved) == [r.request_id for r in result.requests if r.osl > 1 and r.outcome == "completed"]
    for r in result.requests:
        if r.outcome != "completed":
            continue
        assert sum(getattr(r, f"{stage}_exposed_s") for stage in STAGES) == pytest.approx(r.e2e_s)
        if r.osl == 1:
            continue
        t = moved[r.request_id]
        assert r.distortion_final <= r.distortion_token_weighted <= r.distortion_start
        assert (t.distortion_start, t.distortion_final) == (r.distortion_start, r.distortion_final)
        assert t.wire_bytes == r.wire_bytes >= t.refine_bytes >= 0
        if not math.isnan(t.refine_finish_s):
            assert t.finish_s <= t.refine_finish_s <= r.finish_s
            assert t.refine_bytes > 0
        if t.refine_bytes == 0:
            assert r.distortion_final == r.distortion_start


def test_refinement_lowers_the_token_weighted_distortion(profile) -> None:
    """Requests with a tight deadline send over a link that is idle half of the time."""
    requests = [Request(i, 0.35 * i, 200, 60) for i in range(30)]

    def mean(behind: float) -> float:
        result = run(
            cluster(profile),
            requests,
            lambda: Embedded(Bandwidth(1e5), 0.02, 0.2, 0.3, refine_distortion=behind),
            RoundRobin(),
            SLO(0.18, 0.02),
        )
        return sum(r.distortion_token_weighted for r in result.requests) / 30

    assert mean(0.0) < 0.8 * mean(math.inf)

"""KV that is sent in layer groups: cases worked out by hand, and invariants of random runs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.embedded import Embedded
from abkt.policy.bitrate.fixed import Fixed, Raw
from abkt.policy.routing.load_aware import LoadAwareRouting
from abkt.policy.view import Decision
from abkt.profile.expect import curve_for
from abkt.records import SLO, STAGES
from sim.cluster import Simulation
from sim.transfer.transport import TransportModel
from sim.workload.requests import Request
from tests.sim.test_cluster import Scripted, cluster, run

PREFILL_S = 0.00217 + 100 * 0.000313 + 100**2 * 1.7e-7  # of 100 tokens
ALPHA_S = 0.00047


def piped(profile, groups: int, staging: int = 8, request: Request | None = None, bitrate=Raw, **more):
    of = cluster(profile, transport=TransportModel(layer_groups=groups, staging=staging), **more)
    result = run(of, [request or Request(2, 0.0, 100, 4)], bitrate)
    return result.requests[0], result.transfers[0]


def test_two_raw_groups_leave_one_after_the_other(profile) -> None:
    """The link is slower than the forward pass, so the second group leaves when the first has left."""
    record, transfer = piped(profile, 2)
    encode_s, expand_s = 50 * 1.1e-6, 50 * 1.3e-6  # of one group
    start_s = PREFILL_S / 2 + encode_s
    arrived_s = start_s + 6400 / 1e5 + 2 * ALPHA_S
    assert transfer.start_s == pytest.approx(start_s)
    assert transfer.finish_s == pytest.approx(arrived_s)
    assert transfer.calls == 2
    assert record.prefill_token_s == pytest.approx(PREFILL_S + encode_s)  # the first group's encoding delayed the pass
    assert record.prefill_busy_s == pytest.approx(PREFILL_S)
    assert record.encode_busy_s == pytest.approx(2 * encode_s)
    assert record.expand_busy_s == pytest.approx(2 * expand_s)
    exposed = [getattr(record, f"{stage}_exposed_s") for stage in STAGES]
    iterations_s = sum(0.00311 + 0.000271 + (100 + i) * 1.37e-5 for i in range(3))
    expected = [0, PREFILL_S + encode_s, encode_s, arrived_s - PREFILL_S - 2 * encode_s, expand_s, iterations_s]
    assert exposed == pytest.approx(expected)


def test_a_fast_link_hides_all_groups_but_the_last(profile) -> None:
    """Ten groups of 640 bytes in 0.64 ms each, while a tenth of the pass takes 3.5 ms."""
    record, transfer = piped(profile, 10, rate=1e6)
    encode_s = 10 * 1.1e-6
    assert transfer.start_s == pytest.approx(PREFILL_S / 10 + encode_s)
    assert record.wire_exposed_s == pytest.approx(640 / 1e6 + 10 * ALPHA_S)
    assert record.expand_exposed_s == pytest.approx(10 * 1.3e-6)
    assert record.prefill_exposed_s == pytest.approx(PREFILL_S + 9 * encode_s)
    assert record.encode_exposed_s == pytest.approx(encode_s)


def test_groups_without_a_staging_place_are_encoded_at_the_end(profile) -> None:
    """Four groups share one staging place. The first group's bytes take longer than the pass, so the others wait for its end."""
    record, transfer = piped(profile, 4, staging=1, rate=2e4)
    encode_s = 25 * 1.1e-6
    assert record.prefill_exposed_s == pytest.approx(PREFILL_S + encode_s)
    assert record.encode_exposed_s == pytest.approx(3 * encode_s)
    assert transfer.finish_s == pytest.approx(PREFILL_S / 4 + encode_s + 6400 / 2e4 + 4 * ALPHA_S)
    freed, _ = piped(profile, 4, staging=1, rate=1e6)  # every group has left before the next is computed
    assert freed.prefill_exposed_s == pytest.approx(PREFILL_S + 3 * encode_s)


def test_each_group_may_have_its_own_cut(profile) -> None:
    """Four groups are sent at cuts 7, 3, 3 and 5. The policy sees the result of staying with one cut from here on."""
    policy = Scripted([Decision("stream", "slope", cut) for cut in (7, 7, 3, 3, 3, 3, 5, 5)])
    record, transfer = piped(profile, 4, request=Request(0, 0.0, 100, 4), bitrate=lambda: policy)
    own = curve_for(profile, 100, draw=0).slope.scaled(6400)
    chosen = [7, 3, 3, 5]
    assert transfer.wire_bytes == round(sum(own.bytes[cut] for cut in chosen) / 4)
    assert record.distortion_start == pytest.approx(sum(own.distortion[cut] for cut in chosen) / 4)
    assert transfer.cut == 5
    first, *asked = [view for _, view in policy.views]
    assert first.hidden_s == pytest.approx(PREFILL_S)
    assert asked[0].slope == own
    third = asked[-1]
    fixed = [sum(values[cut] for cut in chosen[:3]) / 4 for values in (own.bytes, own.distortion, own.bits)]
    assert third.slope.bytes == pytest.approx([fixed[0] + b / 4 for b in own.bytes])
    assert third.slope.distortion == pytest.approx([fixed[1] + d / 4 for d in own.distortion])
    assert third.slope.bits == pytest.approx([fixed[2] + b / 4 for b in own.bits])
    assert third.sent_cut == 5
    assert third.sent_bytes == pytest.approx(third.slope.bytes[5])
    assert record.expand_busy_s > 0


def test_each_group_pays_the_codecs_constant_part(profile) -> None:
    record, _ = piped(profile, 4, bitrate=lambda: Fixed(4))
    assert record.encode_busy_s == pytest.approx(4 * 0.00017 + 100 * 1.3e-5)
    assert record.expand_busy_s == pytest.approx(4 * 0.00019 + 100 * 1.2e-5)


def test_a_request_for_one_token_has_no_transfer_and_no_pipeline(profile) -> None:
    of = cluster(profile, transport=TransportModel(layer_groups=4))
    result = run(of, [Request(0, 0.0, 100, 1)])
    assert result.requests[0].finish_s == pytest.approx(PREFILL_S)
    assert not result.transfers


BITRATES = {"raw": Raw, "int4": lambda: Fixed(4), "embedded": lambda: Embedded(Bandwidth(1e5), 0.05, 0.2, 0.2, refine_distortion=0.001)}
arrivals = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 250), st.integers(1, 40)), min_size=1, max_size=20).map(
    lambda rows: [Request(i, at, isl, osl) for i, (at, isl, osl) in enumerate(sorted(rows))]
)


@settings(max_examples=50)
@given(
    requests=arrivals,
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    kv=st.sampled_from([320, 10_000]),
    rate=st.sampled_from([2e4, 2e5, Capacity((0.0, 0.4), (3e5, 2e4), 0.9)]),
    bitrate=st.sampled_from(sorted(BITRATES)),
    groups=st.integers(2, 5),
    staging=st.integers(1, 3),
)
def test_runs_with_layer_groups_keep_the_invariants(profile, requests, sizes, kv, rate, bitrate, groups, staging) -> None:
    of = cluster(profile, *sizes, rate=rate, kv=kv, transport=TransportModel(layer_groups=groups, staging=staging))
    result = run(of, requests, BITRATES[bitrate], LoadAwareRouting(), SLO(0.3, 0.02), debug=True)
    done = [r for r in result.requests if r.outcome == "completed"]
    assert sorted(t.request_id for t in result.transfers) == [r.request_id for r in done if r.osl > 1]
    for r in done:
        exposed = [getattr(r, f"{stage}_exposed_s") for stage in STAGES]
        assert sum(exposed) == pytest.approx(r.e2e_s)
        assert min(exposed) >= -1e-12
    assert sum(t.wire_bytes for t in result.transfers) == sum(r.wire_bytes for r in done)
    assert all(t.wire_bytes == t.raw_bytes for t in result.transfers if t.mode == "raw")


@pytest.mark.parametrize("bitrate", ["raw", "int4"])
def test_overlap_saves_time_on_a_slow_link(profile, bitrate) -> None:
    """One prompt runs at a time. The first groups' bytes are sent, and so hidden, while other groups are computed."""
    long = Request(0, 0.0, 400, 4)
    whole, halves, quarters = (piped(profile, groups, request=long, bitrate=BITRATES[bitrate], rate=5e5)[0].ttft_s for groups in (1, 2, 4))
    assert quarters < halves < whole


@pytest.mark.parametrize("rate", [2e4, 1e5, 1e6])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("bitrate", ["raw", "int4"])
def test_a_quote_equals_the_time_that_an_idle_pair_needs(profile, rate, groups, bitrate) -> None:
    """With layer groups it does so up to the codec times, which lengthen the pass and overlap with the bytes."""
    request = Request(0, 0.0, 100, 4)
    of = cluster(profile, rate=rate, transport=TransportModel(layer_groups=groups, staging=8))
    simulation = Simulation(of, [request], BITRATES[bitrate], LoadAwareRouting(), SLO(0.5, 0.02))
    prefill, decode = simulation.nodes.all
    quoted_s = simulation.nodes.pair(prefill, decode).quote_s(100, 0.0)
    (record,) = simulation.run().requests
    codec_s = record.encode_busy_s + record.expand_busy_s
    assert quoted_s == pytest.approx(record.transfer_exposed_s, abs=1e-9 if groups == 1 else 2 * codec_s)

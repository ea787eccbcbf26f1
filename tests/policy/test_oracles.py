"""The bounds on one simulated link: no policy does better than the one that knows the link."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.break_even import stage_costs
from abkt.policy.bitrate.embedded import Embedded
from abkt.policy.bitrate.oracle_bandwidth import OracleBandwidth
from abkt.policy.bitrate.oracle_profile import OracleProfile
from abkt.policy.view import BitratePolicy, Curve, GoodputSample, TransferView
from tests.policy.every import POLICIES, distortion, policy, under_way
from tests.policy.test_capacity import schedules

BITS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
GOOD = Curve(tuple(2e4 + 7e4 * b for b in BITS), tuple(0.5 * 4**-b if b else 1.0 for b in BITS), BITS)
EVEN = Curve(tuple(2.2e4 + 7.5e4 * b for b in BITS), tuple(0.7 * 4**-b if b else 1.0 for b in BITS), BITS)  # worse at any size
TARGET, WORST = 0.005, 0.3
FRAME_BYTES = 2e4


def carry(of: BitratePolicy, view: TransferView, link: Capacity, now_s: float) -> tuple[float, float]:
    """(when the KV is usable, its distortion) of one transfer alone on its link; the policy decides before each frame."""
    decision = of.decide(now_s, view)
    encode_s, wire_bytes, expand_s = stage_costs(view, decision)
    now_s += encode_s
    if decision.mode != "stream":
        return link.finish_s(now_s, wire_bytes) + expand_s, 0.0
    curve, deepest = view.curve(decision.order), view.curve(decision.order).cut_of_bits(decision.depth_bits)
    sent_bytes, cut = 0.0, decision.cut
    while True:
        sent_cut = next(i for i, size in enumerate(curve.bytes) if size >= sent_bytes) if sent_bytes else 0
        moved = replace(under_way(view, decision, 0.0), sent_bytes=sent_bytes, sent_cut=sent_cut)
        later = of.decide(now_s, moved)
        cut = max(min(later.cut if later.mode == "stream" else deepest, deepest), sent_cut)
        if sent_bytes >= curve.bytes[cut]:
            return now_s + view.expand_s, curve.distortion[cut]
        frame = min(FRAME_BYTES, curve.bytes[cut] - sent_bytes)
        done_s = link.finish_s(now_s, frame)
        of.observe(done_s, GoodputSample(frame, done_s - now_s))
        sent_bytes, now_s = curve.bytes[cut] if frame < FRAME_BYTES else sent_bytes + frame, done_s


def use(usable_s: float, left: float, deadline_s: float) -> float:
    """The value of a transfer: none if it is late or too coarse; better than the target counts as the target."""
    if usable_s > deadline_s or left > WORST:
        return 0.0
    return 1.0 if left <= TARGET else 1.0 - left


@pytest.mark.parametrize("name", [name for name in POLICIES if not name.startswith("oracle_bandwidth")])
@settings(max_examples=30)
@given(
    link=schedules(),
    scale=st.floats(0.1, 3),
    start_s=st.floats(0, 30),
    within_s=st.floats(0.05, 3),
    codec_s=st.tuples(*[st.floats(0.001, 0.3)] * 4),
    believed=st.floats(1e4, 1e7),
)
def test_no_policy_does_better_than_the_one_that_knows_the_link(name, link, scale, start_s, within_s, codec_s, believed) -> None:
    link = Capacity(link.starts_s, tuple(scale * rate + 1e4 for rate in link.bytes_per_s), link.period_s)
    view = TransferView(
        1_200_000,
        start_s + within_s,
        GOOD,
        EVEN,
        encode_s=codec_s[0],
        expand_s=codec_s[1],
        lossless_bytes=9e5,
        lossless_encode_s=codec_s[2],
        lossless_expand_s=codec_s[3],
    )
    known = use(*carry(OracleBandwidth(link, TARGET, WORST, WORST), view, link, start_s), view.deadline_s + 1e-6)
    guessed = use(*carry(policy(name, believed), view, link, start_s), view.deadline_s - 1e-6)
    assert known >= guessed - 1e-9


@pytest.mark.parametrize("name", ["embedded", "fleet", "oracle_bandwidth"])
def test_full_precision_does_not_miss_a_deadline_that_a_coarser_stream_keeps(name) -> None:
    """At 2.2 MB/s raw needs 0.550 s, the target 0.576 s, three bits 0.545 s and a bit and a half 0.497 s."""
    view = TransferView(1_200_000, 0.5, GOOD, EVEN, encode_s=0.36, expand_s=0.08, raw_s=0.005)
    link, bounds = Capacity.constant(2.2e6), {"target_distortion": TARGET, "mean_distortion": WORST, "max_distortion": WORST}
    of = OracleBandwidth(link, **bounds) if name == "oracle_bandwidth" else policy(name, 2.2e6, **bounds)
    decisions = [of.decide(0.0, replace(view, deadline_s=deadline_s)) for deadline_s in (0.4, 0.5, 0.549, 0.56, 9.0)]
    assert [(d.mode, d.cut) for d in decisions] == [("stream", 1), ("stream", 3), ("stream", 6), ("raw", 0), ("raw", 0)]


def test_the_policy_that_knows_the_link_decides_as_worked_out_by_hand() -> None:
    """1 MB/s for 0.2 s, then 0.1 MB/s: 200 + 30 kB pass in half a second, so three bits; with a later drop all that is asked."""
    view = TransferView(1_200_000, 0.5, GOOD, EVEN, raw_s=9.0)
    drops = [Capacity((0.0, at_s), (1e6, 1e5)) for at_s in (0.2, 0.3, 9.0)]
    cuts = [OracleBandwidth(drop, TARGET, WORST, WORST).decide(0.0, view).cut for drop in drops]
    assert [GOOD.bytes[cut] for cut in cuts] == [2.3e5, 3e5, 3e5]
    assert [GOOD.bits[cut] for cut in cuts] == [3.0, 4.0, 4.0]
    assert OracleBandwidth(drops[0], TARGET, WORST, WORST).decide(-9.0, view).cut == cuts[1]
    assert OracleBandwidth(drops[0], TARGET, 0.02, WORST).decide(0.4, view).cut == 5  # late: the coarsest within its budget
    assert [OracleBandwidth(drops[0]).estimate_bytes_per_s(t) for t in (0.0, 0.3)] == [1e6, 1e5]


def test_the_known_curve_decides_what_the_expected_one_would_not() -> None:
    """Raw is usable after 1.2 s. As good as asked is expected to take 0.3 s and 1 s of codec; this request would need 0.1 s."""
    view = TransferView(1_200_000, 9.0, GOOD, EVEN, encode_s=0.6, expand_s=0.4)
    easy = GOOD.scaled(1 / 3 / view.raw_bytes)
    blind, knowing = Embedded(Bandwidth(1e6), TARGET, WORST, WORST), OracleProfile(Embedded(Bandwidth(1e6), TARGET, WORST, WORST))
    assert blind.decide(0.0, replace(view, own_slope=easy)).mode == "raw"
    assert knowing.decide(0.0, replace(view, own_slope=easy)).mode == "stream"
    assert knowing.decide(0.0, view) == blind.decide(0.0, view)
    assert math.isclose(distortion(view, knowing.decide(0.0, replace(view, own_slope=easy))), 0.5 * 4**-4)

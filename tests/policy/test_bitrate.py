"""Laws that every bitrate policy keeps, and what each is for."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.break_even import compression_loses
from abkt.policy.bitrate.embedded import Embedded
from abkt.policy.bitrate.fixed import Fixed, Raw
from abkt.policy.build import build
from abkt.policy.view import Curve, GoodputSample, TransferView

POLICIES = {
    "raw": {"_target_": "abkt.policy.bitrate.fixed.Raw"},
    "int8": {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": 8},
    "int4": {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": 4},
    "int2": {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": 2},
    "embedded": {
        "_target_": "abkt.policy.bitrate.embedded.Embedded",
        "mean_distortion": 0.3,
        "max_distortion": 0.3,
        "link": {"_target_": "abkt.policy.bandwidth.Bandwidth", "initial_bytes_per_s": 1e6},
    },
}
every = pytest.mark.parametrize("name", POLICIES)
SLOPE = Curve((2e4, 5e4, 1e5, 2e5, 4e5, 6e5), (1.0, 0.4, 0.15, 0.04, 0.008, 0.0005), (0.0, 0.5, 1.2, 2.8, 5.5, 8.0))
UNIFORM = Curve((2e4, 1.6e5, 2.9e5, 5.4e5), (1.0, 0.2, 0.01, 0.0003), (0.0, 2.0, 4.0, 8.0))


@st.composite
def views(draw) -> TransferView:
    sent = draw(st.one_of(st.just(0.0), st.floats(1.0, 6e5)))
    return TransferView(
        raw_bytes=1_000_000,
        deadline_s=draw(st.floats(-1, 3)),
        slope=SLOPE,
        uniform=UNIFORM,
        encode_s=draw(st.floats(0, 0.5)),
        expand_s=draw(st.floats(0, 0.5)),
        raw_s=draw(st.floats(0, 0.1)),
        sent_bytes=sent,
        sent_cut=next(cut for cut, size in enumerate(SLOPE.bytes) if size >= sent) if sent else 0,
    )


samples = st.lists(st.builds(GoodputSample, st.floats(1.0, 1e6), st.floats(1e-3, 1.0)), max_size=6)


@every
@given(view=views(), seen=samples)
def test_a_cut_exists_and_what_has_left_is_kept(name, view, seen) -> None:
    policy = build(POLICIES[name])
    for i, sample in enumerate(seen):
        policy.observe(float(i), sample)
    decision = policy.decide(0.0, view)
    if decision.mode == "raw":
        assert decision.cut == 0
    else:
        assert 0 <= decision.cut <= view.curve(decision.order).finest
        assert decision.order == "uniform" or decision.cut >= view.sent_cut
        assert decision.depth_bits in (2, 4, 8)


@every
@given(view=views(), seen=samples)
def test_the_same_calls_give_the_same_answers_and_asking_changes_nothing(name, view, seen) -> None:
    one, other = build(POLICIES[name]), build(POLICIES[name])
    for i, sample in enumerate(seen):
        one.observe(float(i), sample)
        one.decide(float(i), view)  # asked more often
        other.observe(float(i), sample)
    asked = copy.deepcopy(one)
    assert one.decide(9.0, view) == other.decide(9.0, view) == asked.decide(9.0, view) == asked.decide(9.0, view)


@given(view=views(), rate=st.floats(1e3, 1e8), later=st.floats(0, 2), faster=st.floats(1, 10))
def test_embedded_gives_more_where_there_is_more_time_or_a_faster_link(view, rate, later, faster) -> None:
    view = replace(view, encode_s=0.01, expand_s=0.01, raw_s=1e9)  # raw is out of the question

    def cut(rate: float, view: TransferView) -> int:
        return Embedded(Bandwidth(rate), 0.01, 0.3, 0.3).decide(0.0, view).cut

    assert cut(rate, view) <= cut(rate, replace(view, deadline_s=view.deadline_s + later))
    assert cut(rate, view) <= cut(rate * faster, view)


@given(view=views(), rate=st.floats(1e3, 1e8), target=st.floats(0, 0.3), worst=st.floats(0.3, 1))
def test_embedded_by_its_definition(view, rate, target, worst) -> None:
    decision = Embedded(Bandwidth(rate), target, worst, worst).decide(0.0, view)
    if decision.mode == "raw":
        assert view.sent_bytes == 0
        return
    distortion, size = SLOPE.distortion[decision.cut], SLOPE.bytes[decision.cut]
    assert distortion <= worst  # however late
    time_left = max(0.0, view.deadline_s - view.encode_s - view.expand_s)
    if decision.cut > view.sent_cut and (decision.cut == 0 or SLOPE.distortion[decision.cut - 1] <= worst):
        assert size <= (view.sent_bytes + rate * time_left) * (1 + 1e-12)  # beyond the floor only what arrives in time
        assert decision.cut == 0 or SLOPE.distortion[decision.cut - 1] > target  # and no better than asked
    if distortion > target and decision.cut < SLOPE.finest:  # less than asked: one band more would be late
        assert SLOPE.bytes[decision.cut + 1] > view.sent_bytes + rate * time_left


def test_embedded_by_hand() -> None:
    view = TransferView(1_000_000, deadline_s=0.5, slope=SLOPE, uniform=UNIFORM, encode_s=0.1, expand_s=0.1)
    policy = Embedded(Bandwidth(1e6), target_distortion=0.01, mean_distortion=0.3, max_distortion=0.3)
    assert policy.decide(0.0, view).cut == 3  # 0.3 s at 1 MB/s: 300 kB
    assert policy.decide(-9.0, view).cut == 4  # time for all, and 0.008 is as good as asked
    assert policy.decide(9.0, view).cut == 2  # too late, but 0.15 is the first below 0.3
    assert policy.decide(0.0, replace(view, sent_bytes=350_000.0, sent_cut=4)).cut == 4
    assert policy.decide(0.0, replace(view, encode_s=1.0)).mode == "raw"  # 1 s of raw bytes beats 1 s of encoding and more
    policy.observe(0.0, GoodputSample(1e5, 1.0))
    assert policy.decide(0.0, view).cut == 2
    assert policy.estimate_bytes_per_s(0.0) == 1e5


@given(st.lists(views(), min_size=1, max_size=30), st.floats(1e3, 1e7), st.floats(0.001, 0.3), st.floats(1, 8))
def test_embedded_keeps_its_mean_whatever_the_link_does(transfers, rate, mean, spread) -> None:
    """What good times leave unused pays for bad ones; the mean holds after every single transfer."""
    policy = Embedded(Bandwidth(rate), 0.001, mean, mean * spread)
    left = []
    for view in transfers:
        decision = policy.decide(0.0, replace(view, sent_bytes=0.0, sent_cut=0))
        left.append(0.0 if decision.mode == "raw" else SLOPE.distortion[decision.cut])
        policy.delivered(0.0, left[-1])
        assert sum(left) <= len(left) * mean * (1 + 1e-9)
        assert left[-1] <= mean * spread


def test_embedded_spends_what_it_has_saved() -> None:
    late = TransferView(1_000_000, deadline_s=-1.0, slope=SLOPE, uniform=UNIFORM)
    policy = Embedded(Bandwidth(1e6), 0.001, 0.05, 0.2)
    assert policy.decide(0.0, late).cut == 3  # 0.04 is the first within 0.05
    for _ in range(3):
        policy.delivered(0.0, 0.0)
    assert policy.decide(0.0, late).cut == 2  # four transfers may have 0.2 in all, so this one 0.15
    policy.delivered(0.0, 0.15)
    assert policy.decide(0.0, late).cut == 3  # 0.1 is left


@given(
    raw_bytes=st.integers(1000, 10**9),
    ratio=st.floats(1.05, 16),
    encode=st.floats(1e-3, 10),
    expand=st.floats(1e-3, 10),
    rate=st.floats(1e3, 1e11),
)
def test_the_break_even_of_a_serial_codec(raw_bytes, ratio, encode, expand, rate) -> None:
    """Compression wins iff B < (1 - 1/r) S with 1/S = 1/S_enc + 1/S_dec."""
    view = TransferView(raw_bytes, 0.0, SLOPE, UNIFORM, encode_s=encode, expand_s=expand)
    codec = 1 / (encode / raw_bytes + expand / raw_bytes)
    threshold = (1 - 1 / ratio) * codec
    if abs(rate / threshold - 1) > 1e-9:
        assert compression_loses(rate, view, raw_bytes / ratio) == (rate > threshold)


@pytest.mark.parametrize(("bits", "cut"), [(2, 1), (4, 2), (8, 3)])
def test_fixed_takes_the_uniform_cut_of_its_bits(bits, cut) -> None:
    decision = Fixed(bits).decide(0.0, TransferView(1_000_000, 0.0, SLOPE, UNIFORM))
    assert (decision.mode, decision.order, decision.cut, decision.depth_bits) == ("stream", "uniform", cut, bits)


def test_raw_is_raw() -> None:
    assert Raw().decide(0.0, TransferView(1_000_000, 0.0, SLOPE, UNIFORM)).mode == "raw"


def test_refused() -> None:
    with pytest.raises(ValueError, match="one of 2, 4, 8"):
        Fixed(3)
    with pytest.raises(ValueError, match="max_distortion"):
        Embedded(Bandwidth(1.0), 0.1, 0.5, 0.2)
    with pytest.raises(ValueError, match="cannot be found"):
        build({"_target_": "abkt.policy.bitrate.fixed.Fixt"})
    with pytest.raises(ValueError, match="unexpected keyword"):
        build({"_target_": "abkt.policy.bitrate.fixed.Raw", "bits": 4})

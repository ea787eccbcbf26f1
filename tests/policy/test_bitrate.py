"""Embedded, the fixed policies, and refused configurations."""

from __future__ import annotations

import math
import pkgutil
from dataclasses import replace
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

import abkt.policy
from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.base import bytes_in_time
from abkt.policy.bitrate.embedded import Embedded
from abkt.policy.bitrate.fixed import Fixed, Raw
from abkt.policy.build import RENAMED_KEYS, build, maker
from abkt.policy.view import Decision, Delivered, GoodputSample, TransferView
from tests.policy.every import SLOPE, UNIFORM, views


def ended_at(distortion: float) -> Delivered:
    return Delivered(distortion, Decision("stream"), TransferView(1_000_000, 0.0, SLOPE, UNIFORM), 0.1)


@given(view=views(), rate=st.floats(1e3, 1e8), later=st.floats(0, 2), faster=st.floats(1, 10))
def test_embedded_sends_more_with_more_time_or_a_faster_link(view, rate, later, faster) -> None:
    view = replace(view, raw_s=1e9, lossless_bytes=0.0, hidden_s=0.0)  # no other mode is offered

    def cut(rate: float, view: TransferView) -> int:
        return Embedded(Bandwidth(rate), 0.01, 0.3, 0.3).decide(0.0, view).cut

    assert cut(rate, view) <= cut(rate, replace(view, deadline_s=view.deadline_s + later))
    assert cut(rate, view) <= cut(rate * faster, view)


@given(view=views(), sent=st.floats(0, 6e5), rate=st.floats(1e3, 1e8), target=st.floats(0, 0.3), worst=st.floats(0.3, 1))
def test_embedded_chooses_its_cut_by_its_definition(view, sent, rate, target, worst) -> None:
    sent_cut = next(cut for cut, size in enumerate(SLOPE.bytes) if size >= sent) if sent else 0
    view = replace(view, sent_bytes=sent, sent_cut=sent_cut)
    decision = Embedded(Bandwidth(rate), target, worst, worst).decide(0.0, view)
    if decision.mode != "stream":
        assert view.sent_bytes == 0
        return
    distortion, size = SLOPE.distortion[decision.cut], SLOPE.bytes[decision.cut]
    assert distortion <= worst  # however late
    time_left = max(0.0, view.deadline_s - view.encode_s - view.expand_s)
    if decision.cut > view.sent_cut and (decision.cut == 0 or SLOPE.distortion[decision.cut - 1] <= worst):
        assert size <= (view.sent_bytes + rate * time_left) * (1 + 1e-12)  # beyond the least cut only what arrives in time
        assert decision.cut == 0 or SLOPE.distortion[decision.cut - 1] > target  # and no better than the target
    if distortion > target and decision.cut < SLOPE.finest:  # worse than the target: one band more would be late
        assert SLOPE.bytes[decision.cut + 1] > view.sent_bytes + rate * time_left


def test_embedded_decides_as_worked_out_by_hand() -> None:
    view = TransferView(1_000_000, deadline_s=0.5, slope=SLOPE, uniform=UNIFORM, encode_s=0.1, expand_s=0.1)
    policy = Embedded(Bandwidth(1e6), target_distortion=0.01, mean_distortion=0.3, max_distortion=0.3)
    assert policy.decide(0.0, view).cut == 3  # 0.3 s at 1 MB/s: 300 kB
    assert policy.decide(-9.0, view).cut == 4  # time for everything, and 0.008 reaches the target
    assert policy.decide(9.0, view).cut == 2  # too late, but 0.15 is the first below 0.3
    assert policy.decide(0.0, replace(view, sent_bytes=350_000.0, sent_cut=4)).cut == 4
    assert policy.decide(0.0, replace(view, encode_s=1.0)).mode == "raw"  # 1 s of raw bytes beats 1 s of encoding and more
    exact = replace(view, encode_s=0.9, lossless_bytes=7e5, lossless_encode_s=0.1, lossless_expand_s=0.1)
    assert policy.decide(0.0, exact).mode == "lossless"  # 0.9 s; raw 1, and the stream 1.4
    policy.observe(0.0, GoodputSample(1e5, 1.0))
    assert policy.decide(0.0, view).cut == 2
    assert policy.estimate_bytes_per_s(0.0) == 1e5


def test_embedded_spends_the_distortion_it_has_saved() -> None:
    late = TransferView(1_000_000, deadline_s=-1.0, slope=SLOPE, uniform=UNIFORM)
    policy = Embedded(Bandwidth(1e6), 0.001, 0.05, 0.2)
    assert policy.decide(0.0, late).cut == 3  # 0.04 is the first within 0.05
    for _ in range(3):
        policy.delivered(0.0, ended_at(0.0))
    assert policy.decide(0.0, late).cut == 2  # four transfers may have 0.2 in all, so this one 0.15
    policy.delivered(0.0, ended_at(0.15))
    assert policy.decide(0.0, late).cut == 3  # 0.1 is left


def test_without_time_nothing_is_sent_even_on_an_unlimited_link() -> None:
    view = TransferView(1_000_000, 1.0, SLOPE, UNIFORM, encode_s=0.5, expand_s=0.5, sent_bytes=7.0)
    assert [bytes_in_time(math.inf, now_s, view) for now_s in (-1.0, 0.0, 1.0)] == [math.inf, 7.0, 7.0]
    assert bytes_in_time(10.0, -1.0, view) == 17.0


@pytest.mark.parametrize(("bits", "cut"), [(2, 1), (4, 2), (8, 3)])
def test_fixed_takes_the_uniform_cut_of_its_bits(bits, cut) -> None:
    decision = Fixed(bits).decide(0.0, TransferView(1_000_000, 0.0, SLOPE, UNIFORM))
    assert (decision.mode, decision.order, decision.cut, decision.depth_bits) == ("stream", "uniform", cut, bits)


def test_the_raw_policy_sends_raw_kv() -> None:
    assert Raw().decide(0.0, TransferView(1_000_000, 0.0, SLOPE, UNIFORM)).mode == "raw"


def test_impossible_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="bits is 3; one of 2, 4, 8"):
        Fixed(3)
    with pytest.raises(ValueError, match="max_distortion"):
        Embedded(Bandwidth(1.0), 0.1, 0.5, 0.2)
    with pytest.raises(ValueError, match="cannot be found"):
        build({"_target_": "abkt.policy.bitrate.fixed.Fixt"})
    with pytest.raises(ValueError, match="unexpected keyword"):
        build({"_target_": "abkt.policy.bitrate.fixed.Raw", "bits": 4})
    with pytest.raises(ValueError, match=r"target_distortion is '\.inf'; a number is needed"):
        build({"_target_": "abkt.policy.bitrate.embedded.Embedded", "target_distortion": ".inf"})


@pytest.mark.parametrize(
    ("target", "old", "new"),
    [
        ("bitrate.oracle_bandwidth.OracleBandwidth", "behind_distortion", "refine_distortion"),
        ("bitrate.fleet.Fleet", "behind_distortion", "refine_distortion"),
        ("bitrate.published.state_machine.StateMachine", "vote_s", "sample_s"),
        ("routing.prefix_aware.PrefixAware", "balance_s", "balance_threshold_s"),
        ("roles.load_aware.LoadAwareRoles", "horizon_s", "payback_s"),
        ("admission.reserve.Reserve", "patience_s", "max_wait_s"),
    ],
)
def test_an_old_field_is_answered_with_its_new_name(target, old, new) -> None:
    with pytest.raises(ValueError, match=f"^policy abkt.policy.{target}: {old} is now {new}$"):
        build({"_target_": f"abkt.policy.{target}", old: 1.0})


def test_every_renamed_field_exists_on_some_policy() -> None:
    modules = [import_module(m.name) for m in pkgutil.walk_packages(abkt.policy.__path__, "abkt.policy.")]
    fields = {name for module in modules for kind in vars(module).values() for name in getattr(kind, "__dataclass_fields__", ())}
    assert set(RENAMED_KEYS.values()) <= fields


def test_a_maker_gives_equal_policies_that_share_no_state() -> None:
    link = {"_target_": "abkt.policy.bandwidth.Bandwidth", "initial_bytes_per_s": 1e6}
    config = {"_target_": "abkt.policy.bitrate.embedded.Embedded", "link": link, "target_distortion": 0.001}
    make = maker(config)
    one, other = make(), make()
    assert one == other == build(config)
    one.observe(1.0, GoodputSample(1e5, 1.0))
    assert one.estimate_bytes_per_s(1.0) < other.estimate_bytes_per_s(1.0) == 1e6
    with pytest.raises(ValueError, match="initial_bytes_per_s"):
        maker({**config, "link": {**link, "initial_bytes_per_s": -1.0}})

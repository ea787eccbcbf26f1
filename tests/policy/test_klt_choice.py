"""The choice of the klt coder by time and by distortion, worked out by hand.

At a distortion of 0.01 or less the fixed coder sends 0.4 MB, the entropy coder 0.2 MB, and klt 0.09 MB. klt takes 0.6 s to encode and 0.2 s
to expand, entropy 0.3 and 0.1 s, and fixed nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from abkt.capacity import Capacity
from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.bounded import Bounded
from abkt.policy.bitrate.break_even import stage_costs
from abkt.policy.bitrate.coded import Coded
from abkt.policy.bitrate.coders import demerit, with_coder
from abkt.policy.bitrate.embedded import Embedded, EmbeddedBits
from abkt.policy.bitrate.equal import Equal
from abkt.policy.bitrate.fixed import Fixed
from abkt.policy.bitrate.fleet import Fleet
from abkt.policy.bitrate.oracle_bandwidth import OracleBandwidth
from abkt.policy.bitrate.published.cachegen import CacheGen
from abkt.policy.view import BitratePolicy, Decision, TransferView
from abkt.profile.schema import RateCurve
from tests.policy.every import KLT, SLOPE, UNIFORM

PLAIN = TransferView(1_000_000, 99.0, SLOPE, UNIFORM, raw_s=9.0, entropy_share=0.5, entropy_encode_s=0.3, entropy_expand_s=0.1)
VIEW = replace(PLAIN, klt=KLT, klt_encode_s=0.6, klt_expand_s=0.2)
BUDGET = (0.01, 0.05, 0.3)


def told(name: str, rate: float) -> BitratePolicy:
    if name == "oracle":
        return OracleBandwidth(Capacity.constant(rate), *BUDGET)
    return {"embedded": Embedded, "fleet": Fleet}[name](Bandwidth(rate), *BUDGET)


@pytest.mark.parametrize("name", ["embedded", "fleet"])
@pytest.mark.parametrize(
    ("rate", "coder", "cut"),
    [
        (1e6, "fixed", 4),  # 0.4 s; entropy 0.3 + 0.2 + 0.1 s; klt 0.6 + 0.09 + 0.2 s
        (4e5, "entropy", 4),  # 1.0, 0.9 and 1.025 s
        (2e5, "klt", 2),  # 2.0, 1.4 and 1.25 s
        (1e4, "klt", 2),
    ],
)
def test_the_coder_that_reaches_the_target_first_is_sent(name: str, rate: float, coder: str, cut: int) -> None:
    found = told(name, rate).decide(0.0, VIEW)
    assert (found.mode, found.order, found.coder, found.cut) == ("stream", "slope", coder, cut)


def test_the_oracle_knows_when_the_link_falls() -> None:
    """1 MB/s for 0.1 s, then 0.01 MB/s: by an estimate fixed is the first; in truth klt, which sends after 0.6 s, is late by far less."""
    falling = Capacity((0.0, 0.1), (1e6, 1e4))
    assert OracleBandwidth(falling, *BUDGET).decide(0.0, VIEW).coder == "klt"
    assert told("oracle", 1e6).decide(0.0, VIEW).coder == told("embedded", 1e6).decide(0.0, VIEW).coder == "fixed"


def test_in_time_less_distortion_is_better_down_to_the_target_and_then_the_sooner() -> None:
    assert demerit(0.9, 1.0, 0.03, 0.01) < demerit(0.2, 1.0, 0.04, 0.01)  # finer, though later
    assert demerit(0.2, 1.0, 0.009, 0.01) < demerit(0.9, 1.0, 0.001, 0.01)  # both reach the target
    assert demerit(1.0, 1.0, 0.2, 0.01) < demerit(1.1, 1.0, 0.001, 0.01)  # in time
    assert demerit(1.1, 1.0, 0.2, 0.01) < demerit(1.2, 1.0, 0.001, 0.01)  # both late


def test_klt_is_not_sent_where_it_would_be_late_and_a_coarser_stream_is_in_time() -> None:
    """At 0.2 MB/s until 0.9 s: 0.18 MB are in time with the fixed coder, and leave 0.15; klt leaves 0.06 after 0.6 + 0.15 + 0.2 s."""
    wide, alone = Embedded(Bandwidth(2e5), 0.01, 0.2, 0.3), replace(VIEW, entropy_share=0.0)
    found = wide.decide(0.0, replace(alone, deadline_s=0.9))
    assert (found.coder, found.cut) == ("fixed", 2)
    found = wide.decide(0.0, replace(alone, deadline_s=0.96))
    assert (found.coder, found.cut) == ("klt", 1)


def test_without_a_measured_klt_coder_nothing_changes() -> None:
    for rate in (1e4, 2e5, 4e5, 1e6):
        for name in ("embedded", "fleet", "oracle"):
            assert told(name, rate).decide(0.0, PLAIN).coder != "klt"
    assert EmbeddedBits(Bandwidth(1e4), *BUDGET).decide(0.0, VIEW) == EmbeddedBits(Bandwidth(1e4), *BUDGET).decide(0.0, PLAIN)


def test_raw_bytes_are_sent_where_no_coder_is_sooner() -> None:
    fast = replace(VIEW, raw_s=0.0)
    assert told("embedded", 1e9).decide(0.0, replace(fast, encode_s=0.1)).mode == "raw"
    assert told("embedded", 1e6).decide(0.0, replace(fast, encode_s=1.0, entropy_share=0.0)).coder == "klt"  # 0.89 s; fixed 1.4, raw 1.0


def test_the_costs_of_a_decision_are_those_of_its_coder() -> None:
    assert stage_costs(VIEW, Decision("stream", cut=2, coder="klt")) == (0.6, 9e4, 0.2)
    assert stage_costs(VIEW, Decision("stream", cut=4)) == (0.0, 4e5, 0.0)
    alone = with_coder(VIEW, "klt")
    assert alone is not None
    assert (alone.slope, alone.uniform, alone.encode_s, alone.expand_s, alone.klt) == (KLT, KLT, 0.6, 0.2, None)
    assert with_coder(PLAIN, "klt") is None


def test_a_rival_may_have_klt() -> None:
    assert (Equal(0.01, coder="klt").decide(0.0, VIEW).cut, Equal(0.01).decide(0.0, VIEW).cut) == (2, 4)
    assert Fixed(4, "klt").decide(0.0, VIEW).cut == 3
    same = replace(VIEW, klt=replace(KLT, distortion=(0.5, 0.06, SLOPE.distortion[4], 0.002, 0.0004)))
    for rate, coder, cut in ((1e6, "fixed", 4), (2e5, "klt", 2)):
        found = Coded(Embedded(Bandwidth(rate), *BUDGET), ["fixed", "entropy", "klt"]).decide(0.0, same)
        assert (found.coder, found.cut) == (coder, cut)
    finer = Coded(Embedded(Bandwidth(2e5), *BUDGET), ["fixed", "klt"]).decide(0.0, VIEW)  # 0.01 would do, but the fixed coder left 0.008
    assert (finer.coder, finer.cut) == ("klt", 3)
    bounded = Bounded(CacheGen(2e5), *BUDGET)
    assert bounded.decide(0.0, VIEW).coder == "fixed"
    assert Coded(bounded, ["fixed", "klt"]).decide(0.0, replace(VIEW, deadline_s=1.3)).coder == "klt"


def test_the_coder_holds_once_the_stream_is_encoded() -> None:
    encoded = replace(VIEW, slope=KLT, uniform=KLT, raw_s=math.inf, klt=None, entropy_share=0.0, deadline_s=1.0)
    found = told("embedded", 2e5).decide(0.0, encoded)
    assert (found.mode, found.cut) == ("stream", 2)


def test_a_klt_curve_needs_the_others_in_the_same_unit() -> None:
    with pytest.raises(ValueError, match="needs its distortions in nats"):
        RateCurve(64, SLOPE, UNIFORM, "", False, KLT)

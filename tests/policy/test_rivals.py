"""Policies that give a rival what ours get: equal distortion without the link, a budget, and a choice of coders; worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from abkt.capacity import Capacity
from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.allocated import Allocated
from abkt.policy.bitrate.bounded import Bounded
from abkt.policy.bitrate.coded import Coded
from abkt.policy.bitrate.coders import with_coder
from abkt.policy.bitrate.embedded import Embedded, EmbeddedBits
from abkt.policy.bitrate.equal import Equal
from abkt.policy.bitrate.published.cachegen import CacheGen
from abkt.policy.view import Delivered, GoodputSample, Refined, TransferView
from tests.policy.every import SLOPE, UNIFORM

VIEW = TransferView(1_000_000, 1.0, SLOPE, UNIFORM, raw_s=9.0)
CODED = replace(VIEW, entropy_share=0.5, entropy_encode_s=0.3, entropy_expand_s=0.1)
HARDER = replace(VIEW, slope=replace(SLOPE, distortion=tuple(4 * d for d in SLOPE.distortion)))


def test_equal_gives_each_request_the_bytes_that_its_own_curve_needs() -> None:
    of = Equal(0.04, refine_distortion=0.008)
    first, harder = of.decide(0.0, VIEW), of.decide(0.0, HARDER)
    assert (first.mode, first.order, first.cut, first.refine_to_cut) == ("stream", "slope", 3, 4)
    assert (harder.cut, Allocated(2.8).decide(0.0, HARDER).cut) == (4, 3)
    of.observe(1.0, GoodputSample(1.0, 9.0))
    assert of.decide(99.0, VIEW) == first  # neither a slow link nor a deadline that has passed changes anything
    begun = of.decide(0.0, replace(VIEW, started=True, sent_bytes=SLOPE.bytes[3], sent_cut=3))
    assert (begun.cut, begun.refine_to_cut) == (3, 4)


def test_equal_bits_do_not_look_at_the_curve_but_at_the_deadline() -> None:
    of = EmbeddedBits(Bandwidth(1e6), 0.5, 0.5, 0.5, bits=2.8)
    assert [of.decide(0.0, view).cut for view in (VIEW, HARDER)] == [3, 3]
    assert of.decide(0.0, replace(VIEW, deadline_s=0.12)).cut == 2
    strict = EmbeddedBits(Bandwidth(1e6), 0.1, 0.1, 0.1, bits=2.8)  # the budget allows no more
    assert strict.decide(0.0, HARDER).cut == 4


def test_a_rival_within_a_budget_is_no_finer_than_the_target_and_no_coarser_than_the_budget() -> None:
    """At 1 MB/s CacheGen's levels of 0.54, 0.29 and 0.16 MB take 0.54, 0.29 and 0.16 s."""

    def told() -> Bounded:
        return Bounded(CacheGen(1e6), target_distortion=0.01, mean_distortion=0.05, max_distortion=0.3)

    assert CacheGen(1e6).decide(0.0, VIEW).cut == 3
    assert told().decide(0.0, VIEW).cut == 2  # 8 bits would be in time, 4 reach the target
    late = replace(VIEW, deadline_s=0.2)
    assert CacheGen(1e6).decide(0.0, late).cut == 1
    assert told().decide(0.0, late).cut == 2  # 2 bits leave 0.2, and nothing has been saved yet
    saved = told()
    for _ in range(4):
        saved.delivered(0.0, Delivered(0.01, saved.decide(0.0, VIEW), VIEW, 0.1))
    assert saved.decide(0.0, late).cut == 1  # 4 x 0.04 saved, and 0.05 of its own
    saved.delivered(0.0, Delivered(0.2, saved.decide(0.0, late), late, 0.1))
    assert saved.decide(0.0, late).cut == 2
    saved.refined(0.0, Refined(0.2, 0.01))
    assert saved.decide(0.0, late).cut == 1


def test_a_rival_may_be_given_the_order_and_the_refinement_of_ours() -> None:
    told = Bounded(CacheGen(1e6), 0.01, 0.05, 0.3, refine_distortion=0.0005, order="slope")
    first = told.decide(0.0, VIEW)
    assert (first.order, first.cut, first.refine_to_cut) == ("slope", 4, 5)
    begun = told.decide(0.0, replace(VIEW, started=True, sent_bytes=SLOPE.bytes[4], sent_cut=4))
    assert (begun.cut, begun.refine_to_cut) == (4, 5)
    assert Bounded(CacheGen(1e6), 0.01, 0.05, 0.3).decide(0.0, VIEW).refine_to_cut == 0


def test_the_coder_is_the_one_whose_stream_is_usable_first() -> None:
    """At 1 MB/s and 4 bits the fixed coder takes 0.29 s, the entropy coder 0.3 + 0.145 + 0.1 s; at 0.1 MB/s 2.9 s and 1.85 s."""
    for rate, coder in ((1e6, "fixed"), (1e5, "entropy")):
        of = Coded(CacheGen(rate, bits=[4]))
        assert (of.decide(0.0, CODED).coder, of.decide(0.0, CODED).cut) == (coder, 2)
        assert of.decide(0.0, VIEW).coder == "fixed"  # the entropy coder was not measured
    assert Coded(CacheGen(1e6, bits=[4]), ["entropy"]).decide(0.0, CODED).coder == "entropy"
    assert Coded(Equal(0.04), ["entropy"]).decide(0.0, CODED).coder == "entropy"


def test_a_coder_with_fewer_bytes_brings_a_finer_level_in_time() -> None:
    """At 0.3 MB/s 4 bits take 0.97 s with the fixed coder; 8 bits take 0.3 + 0.9 + 0.1 s with the entropy coder."""
    of = Coded(CacheGen(3e5))
    assert (of.decide(0.0, replace(CODED, deadline_s=1.31)).cut, of.decide(0.0, replace(CODED, deadline_s=1.31)).coder) == (3, "entropy")
    assert (of.decide(0.0, replace(CODED, deadline_s=1.29)).cut, of.decide(0.0, replace(CODED, deadline_s=1.29)).coder) == (2, "entropy")


def test_a_bound_chooses_the_coder_by_the_true_link() -> None:
    """Now 1 MB/s, and a hundredth of it from 0.1 s on: the estimate says fixed, the truth says entropy."""
    link = Capacity((0.0, 0.1), (1e6, 1e4))
    assert Coded(CacheGen(1e6, bits=[4])).decide(0.0, CODED).coder == "fixed"
    assert Coded(CacheGen(1e6, bits=[4]), link=link).decide(0.0, CODED).coder == "entropy"


def test_ours_choose_the_coder_by_the_mean_of_the_rate() -> None:
    """2 s at 0.1 MB/s, then 1 s at 1 MB/s: a mean of 0.67 MB/s. Entropy saves 0.2 MB for 0.4 s more, so below 0.5 MB/s it is faster."""
    of = Embedded(Bandwidth(1e6), 0.01, 0.05, 0.3)
    of.observe(2.0, GoodputSample(2e5, 2.0))
    assert of.decide(2.0, replace(CODED, deadline_s=9.0)).coder == "entropy"
    of.observe(3.0, GoodputSample(1e6, 1.0))
    assert of.link.low_bytes_per_s(3.0) == pytest.approx(1e5)
    assert of.decide(3.0, replace(CODED, deadline_s=9.0)).coder == "fixed"


def test_the_coder_holds_once_the_stream_is_encoded() -> None:
    of = Coded(Embedded(Bandwidth(1e5), 0.01, 0.05, 0.3))
    assert of.decide(0.0, CODED).coder == "entropy"
    encoded = replace(CODED, raw_s=math.inf, encode_s=0.0)
    assert of.decide(0.0, encoded) == of.inner.decide(0.0, encoded)


def test_the_view_with_one_coder_has_its_bytes_and_seconds() -> None:
    made = with_coder(CODED, "entropy")
    assert made is not None
    assert (made.slope.bytes[3], made.uniform.bytes[1], made.encode_s, made.expand_s) == (1e5, 8e4, 0.3, 0.1)
    assert with_coder(VIEW, "entropy") is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Coded(CacheGen(1e6), []), "coders is .*; some of fixed, entropy"),
        (lambda: Coded(CacheGen(1e6), ["zip"]), "coders is .*; some of fixed, entropy"),
        (lambda: Coded(Equal(0.1), ["fixed", "entropy"]), "give one coder"),
        (lambda: Coded(Equal(0.1), ["entropy"]).decide(0.0, VIEW), "has measured none of the coders entropy"),
        (lambda: Bounded(CacheGen(1e6), order="best"), "order is 'best'"),
        (lambda: Bounded(CacheGen(1e6), 0.2, 0.1, 0.3), "none may be above the next"),
        (lambda: Equal(-1.0), "distortion is -1"),
        (lambda: EmbeddedBits(Bandwidth(1e6), bits=9), "bits is 9"),
    ],
)
def test_impossible_settings_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()

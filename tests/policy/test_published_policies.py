"""The policies of others, by hand-made transfers and traces."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.base import LOSSLESS, RAW
from abkt.policy.bitrate.lossless import Lossless
from abkt.policy.bitrate.published.cachegen import CacheGen
from abkt.policy.bitrate.published.kvserve import KVServe
from abkt.policy.bitrate.published.lynx import Lynx
from abkt.policy.bitrate.published.spectrum import Spectrum
from abkt.policy.bitrate.published.state_machine import StateMachine
from abkt.policy.bitrate.random import RandomBitrate
from abkt.policy.view import Curve, Decision, Delivered, GoodputSample, TransferView
from tests.policy.every import SLOPE

UNIFORM = Curve((1e4, 1e5, 2e5, 4e5), (1.0, 0.2, 0.01, 0.0003), (0.0, 2.0, 4.0, 8.0))
VIEW = TransferView(1_000_000, 1.0, SLOPE, UNIFORM, encode_s=0.1, expand_s=0.1)
INT2, INT4, INT8 = (Decision("stream", "uniform", cut, bits) for cut, bits in ((1, 2), (2, 4), (3, 8)))


def sent(view: TransferView, size: float, cut: int) -> TransferView:
    return replace(view, encode_s=0.0, raw_s=float("inf"), lossless_bytes=0.0, sent_bytes=size, sent_cut=cut)


# -- CacheGen ----------------------------------------------------------------------------------------------------------------------


def test_cachegen_chunk_by_chunk() -> None:
    """Four chunks of 100 kB at 8 bits, 1 MB/s, SLO at 1 s, 0.1 s of expanding to come. The link falls to a tenth after the first chunk."""
    policy = CacheGen(initial_bytes_per_s=1e6, chunk_bytes=1e5)
    assert policy.decide(0.0, VIEW).cut == 3  # 0.8 s left, 0.4 needed: the finest
    policy.observe(0.2, GoodputSample(1e5, 0.1))
    assert policy.decide(0.2, sent(VIEW, 1e5, 1)).cut == 3  # 300 kB more at 1 MB/s, 0.7 s left
    policy.observe(0.7, GoodputSample(5e4, 0.5))
    assert policy.estimate_bytes_per_s(0.7) == 1e6  # half a chunk: the last whole one still counts
    policy.observe(1.2, GoodputSample(5e4, 0.5))
    assert policy.estimate_bytes_per_s(1.2) == pytest.approx(1e5)
    late = sent(replace(VIEW, deadline_s=1.8), 2e5, 2)
    assert policy.decide(1.2, late).cut == 2  # 0.5 s at 100 kB/s: 200 kB more are not in time, what has left is
    assert policy.decide(1.2, replace(late, deadline_s=3.31)).cut == 3  # 2 s for 200 kB
    assert policy.decide(1.2, replace(late, deadline_s=3.29)).cut == 2


def test_cachegen_where_nothing_is_in_time_sends_the_coarsest() -> None:
    policy = CacheGen(initial_bytes_per_s=1e6)
    at = {
        deadline_s: policy.decide(0.0, replace(VIEW, deadline_s=deadline_s)).cut for deadline_s in (0.61, 0.59, 0.41, 0.39, 0.31, 0.1, -9)
    }
    assert list(at.values()) == [3, 2, 2, 1, 1, 1, 1]  # 0.2 s of codec; 0.4, 0.2 and 0.1 s of the wire


def test_cachegen_takes_the_short_last_chunk_of_a_transfer_too() -> None:
    policy = CacheGen(initial_bytes_per_s=1e6, chunk_bytes=1e5)
    policy.observe(1.0, GoodputSample(3e4, 1.0))
    assert policy.estimate_bytes_per_s(1.0) == 1e6
    policy.delivered(1.0, Delivered(0.0, INT8, VIEW, 1.0))
    assert policy.estimate_bytes_per_s(1.0) == 3e4


@given(st.lists(st.tuples(st.floats(1e3, 1e6), st.floats(1e-3, 3)), min_size=1, max_size=8), st.data())
def test_cachegen_cares_for_chunks_not_for_how_samples_are_cut(parts, data) -> None:
    at, share = data.draw(st.integers(0, len(parts) - 1)), data.draw(st.floats(0.01, 0.99))
    rate, seconds = parts[at]
    whole, cut = CacheGen(1e6, chunk_bytes=1e5), CacheGen(1e6, chunk_bytes=1e5)
    for policy, listed in ((whole, parts), (cut, [*parts[:at], (rate, seconds * share), (rate, seconds * (1 - share)), *parts[at + 1 :]])):
        for r, s in listed:
            policy.observe(0.0, GoodputSample(r * s, s))
    chunks = sum(r * s for r, s in parts) / 1e5
    if abs(chunks - round(chunks)) > 1e-6:  # at the end of a chunk itself, rounding decides
        assert cut.estimate_bytes_per_s(0.0) == pytest.approx(whole.estimate_bytes_per_s(0.0))


# -- KVServe -----------------------------------------------------------------------------------------------------------------------


def test_kvserve_takes_the_least_latency_that_is_accurate_enough_and_gains() -> None:
    """At 1 MB/s: raw 1 s, exact 0.75 + 0.02, 8 bits 0.4 + 0.2, 4 bits 0.2 + 0.2, and 2 bits are not accurate enough."""
    view = replace(VIEW, lossless_bytes=7.5e5, lossless_encode_s=0.01, lossless_expand_s=0.01)
    at = {rate: KVServe(Bandwidth(rate), max_distortion=0.02).decide(0.0, view) for rate in (1e6, 3e6, 4e6, 10e6, 12e6, 13e6)}
    assert list(at.values()) == [
        INT4,
        INT4,
        LOSSLESS,
        LOSSLESS,
        LOSSLESS,
        RAW,
    ]  # 4 bits lose to exact above 0.55 / 0.18 MB/s; exact at 0.25 / 0.02
    assert KVServe(Bandwidth(1e6), max_distortion=0.3).decide(0.0, view) == INT2
    assert KVServe(Bandwidth(1e6), max_distortion=0.0).decide(0.0, view) == LOSSLESS
    assert KVServe(Bandwidth(1e6), max_distortion=0.0).decide(0.0, VIEW) == RAW


def test_kvserve_learns_what_its_model_is_wrong_by() -> None:
    """4 bits were modelled at 0.1 + 0.2 s up to the end of sending; they take 0.8, twice. Then 8 bits, modelled 0.2 s behind, are ahead."""
    policy = KVServe(Bandwidth(1e6), max_distortion=0.02, eta=0.3)
    policy.delivered(0.0, Delivered(0.01, INT4, VIEW, 0.8))
    assert policy._residual_s == {"4 bits": pytest.approx(0.3 * 0.5)}
    assert policy.decide(0.0, VIEW) == INT4  # 0.4 + 0.15 against 0.6
    policy.delivered(0.0, Delivered(0.01, INT4, VIEW, 0.8))
    assert policy._residual_s == {"4 bits": pytest.approx(0.7 * 0.15 + 0.3 * 0.5)}
    assert policy.decide(0.0, VIEW) == INT8  # 0.4 + 0.255 against 0.6
    policy.delivered(0.0, Delivered(0.0003, INT8, VIEW, 0.1 + 0.4 + 0.2))
    assert policy.decide(0.0, VIEW) == INT4  # 0.6 + 0.06
    policy.delivered(0.0, Delivered(0.0, RAW, VIEW, 99.0))  # of raw there is nothing to learn
    assert set(policy._residual_s) == {"4 bits", "8 bits"}


def test_kvserve_does_not_blame_the_codec_for_the_link() -> None:
    policy = KVServe(Bandwidth(1e6))
    policy.observe(0.0, GoodputSample(2e5, 2.0))
    policy.delivered(0.0, Delivered(0.01, INT4, VIEW, 0.1 + 2.0))
    assert policy._residual_s["4 bits"] == pytest.approx(0.0)


# -- the reference implementation's states -----------------------------------------------------------------------------------------


def states(shares: str) -> list[str | None]:
    """g, d, p: a sample of each class, half a second of sending; the state after each."""
    policy, seen = StateMachine(1e6), []
    for letter in shares:
        policy.observe(0.0, GoodputSample({"g": 1e6, "d": 2e5, "p": 1e5}[letter] * 0.5, 0.5))
        seen.append(policy.state)
    return [state[0] if state else None for state in seen]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ("ggg", "ggg"),
        ("ppg", "ppp"),
        ("gpgpg", "gggpp"),  # 2 of the last 3 are enough to fall
        ("gpggpgg", "ggggggg"),  # two in four are not
        ("gdp", "ggg"),  # they must agree: neither is there twice
        ("gdpp", "gggp"),
        ("pgggg", "ppppg"),  # 4 of the last 5 to rise
        ("pggdgg", "pppppg"),
        ("pgdgdgdg", "p" * 8),  # never four of five
        ("ddddpgggg", "dddddddd" + "g"),
        ("dpp", "ddp"),
        ("pdddd", "ppppd"),
    ],
)
def test_the_state_falls_quickly_and_rises_slowly(samples, expected) -> None:
    assert "".join(s or "?" for s in states(samples)) == expected


def test_states_stand_for_bits() -> None:
    policy = StateMachine(1e6)
    assert policy.decide(0.0, VIEW) == INT4  # before any sample
    for rate, decision in ((4e5, INT8), (2e5, INT4), (1e5, INT2)):
        policy.observe(0.0, GoodputSample(rate * 2, 2.0))
        assert policy.decide(0.0, VIEW) == decision
    policy.observe(0.0, GoodputSample(4e5 * 1.49, 1.49))
    assert policy.decide(0.0, VIEW) == INT2  # two samples
    policy.observe(0.0, GoodputSample(4e5 * 0.52, 0.52))
    assert policy.decide(0.0, VIEW) == INT8  # four


def test_thresholds_are_those_of_a_gigabit() -> None:
    """40 and 15 MB/s of 125."""
    at = []
    for megabytes in (40.1, 39.9, 15.1, 14.9):
        policy = StateMachine(125e6)
        policy.observe(0.0, GoodputSample(megabytes * 1e6, 1.0))
        at.append(policy.state)
    assert at == ["good", "degraded", "degraded", "poor"]


def test_the_end_of_a_transfer_closes_a_sample() -> None:
    policy = StateMachine(1e6)
    policy.observe(0.0, GoodputSample(1e4, 0.1))
    assert policy.state is None
    policy.delivered(0.0, Delivered(0.0, INT4, VIEW, 0.1))
    assert policy.state == "poor"
    policy.delivered(0.0, Delivered(0.0, INT4, VIEW, 0.1))  # nothing was sent: no sample
    assert len(policy._samples) == 1


@given(st.sampled_from("gdp"), st.floats(5, 1e7))
def test_enough_equal_samples_decide_whatever_came_before(letter, seconds) -> None:
    policy = StateMachine(1e6)
    for rate, length in ((1e5, 0.7), (1e6, 3.3), ({"g": 1e6, "d": 2e5, "p": 1e5}[letter], seconds)):
        policy.observe(0.0, GoodputSample(rate * length, length))
    assert policy.state is not None
    assert policy.state[0] == letter


# -- tiers, 4 + 4, at random, exact ------------------------------------------------------------------------------------------------


def test_spectrum_takes_the_finest_tier_in_time() -> None:
    """1 MB/s: fp16 takes 1 s, int8 0.4 + 0.2, int4 goes whatever it takes."""
    three, two = Spectrum(Bandwidth(1e6)), Spectrum(Bandwidth(1e6), int4_allowed=False)
    for deadline_s, tier in ((1.01, RAW), (0.99, INT8), (0.61, INT8), (0.59, INT4), (-1.0, INT4)):
        view = replace(VIEW, deadline_s=deadline_s)
        assert three.decide(0.0, view) == tier
        assert two.decide(0.0, view) == (INT8 if tier == INT4 else tier)


def test_lynx_sends_the_anchor_and_the_residual_where_there_is_time() -> None:
    """1 MB/s: the anchor 0.2 s, both 0.4; 0.2 s of codec."""
    policy = Lynx(Bandwidth(1e6))
    decisions = [policy.decide(0.0, replace(VIEW, deadline_s=deadline_s)) for deadline_s in (0.61, 0.59, -1.0)]
    assert [(d.order, d.cut, d.depth_bits) for d in decisions] == [("uniform", 3, 8), ("uniform", 2, 8), ("uniform", 2, 8)]
    assert policy.decide(0.4, sent(replace(VIEW, deadline_s=0.71), 2e5, 2)).cut == 3  # the anchor has left, 0.2 s are left for 200 kB
    assert policy.decide(0.4, sent(replace(VIEW, deadline_s=0.69), 2e5, 2)).cut == 2


@given(st.integers(0, 1000), st.integers(1, 10**9), st.floats(0, 1e5))
def test_a_random_precision_belongs_to_its_transfer(seed, raw_bytes, deadline_s) -> None:
    view = replace(VIEW, raw_bytes=raw_bytes, deadline_s=deadline_s)
    decision = RandomBitrate(seed).decide(0.0, view)
    assert RandomBitrate(seed).decide(99.0, sent(view, 1e4, 0)) == decision
    assert decision in (INT2, INT4, INT8)


def test_random_precisions_are_as_likely_as_each_other() -> None:
    drawn = Counter(
        RandomBitrate(seed).decide(0.0, replace(VIEW, deadline_s=float(at))).depth_bits for seed in range(3) for at in range(1000)
    )
    assert set(drawn) == {2, 4, 8}
    assert all(abs(count - 1000) < 4 * (3000 * 2 / 9) ** 0.5 for count in drawn.values())  # four standard deviations


def test_lossless_is_exact_or_says_what_is_missing() -> None:
    assert Lossless().decide(0.0, replace(VIEW, lossless_bytes=7e5)) == LOSSLESS
    with pytest.raises(ValueError, match=r"no encode/lossless and expand/lossless; run `abkt profile` again"):
        Lossless().decide(0.0, VIEW)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CacheGen(0.0), "initial_bytes_per_s is 0; it must be above 0"),
        (lambda: CacheGen(1.0, bits=(2, 8)), "they must fall"),
        (lambda: KVServe(Bandwidth(1.0), bits=(3,)), "some of 2, 4, 8"),
        (lambda: KVServe(Bandwidth(1.0), eta=1.5), "eta is 1.5; it must be 0 to 1"),
        (lambda: StateMachine(1.0, good_share=0.1), "poor_share <= good_share"),
        (lambda: RandomBitrate(bits=()), "some of 2, 4, 8"),
    ],
)
def test_impossible_policies_are_refused_in_one_line(make, said) -> None:
    with pytest.raises(ValueError, match=said):
        make()

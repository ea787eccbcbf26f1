"""The price of a NIC, and what is sent at it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.price import PeerPrice, Price
from abkt.policy.view import Delivered, TransferView
from tests.policy.every import SLOPE, UNIFORM, policy, views
from tests.policy.test_curve import curves

moves = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 5e6)), max_size=12)  # (seconds later, bytes that are then added to the backlog)


def test_the_price_is_as_worked_out_by_hand() -> None:
    """A NIC of 1 MB/s. The price starts at 0.01 and is e times as high for each second of waiting work."""
    price = Price(1e6, scale_s=1.0, low=0.01, high=100.0)
    assert price.per_second() == 0.01  # idle: the lowest price
    price.enter(5.0, 3e6)
    assert price.per_second() == pytest.approx(0.01 * math.e**3)
    assert price.per_byte() == pytest.approx(0.01 * math.e**3 / 1e6)
    price.enter(5.5, 2e6)
    assert price.per_second() == pytest.approx(0.01 * math.e**5)
    price.passed(7.0, 2e6)  # at the rate of the NIC
    assert price.rate_bytes_per_s == pytest.approx(1e6)
    assert price.backlog_bytes == 3e6
    assert price.per_second() == pytest.approx(0.01 * math.e**3)
    price.leave(3e6)  # a third of it is cancelled: the bytes that passed count for the rest
    assert price.per_second() == pytest.approx(0.01 * math.e**2)
    price.leave(2e6)
    assert price.per_second() == 0.01
    price.enter(1e9, 1e9)
    assert price.per_second() == 100.0


def test_a_slower_link_has_a_higher_price_by_the_same_factor() -> None:
    """A NIC of 1 MB/s that now passes 0.25 MB/s: after ln 2 horizons the estimate has moved by half of the difference."""
    price = Price(1e6, low=0.5, high=0.5, horizon_s=2.0)
    price.enter(10.0, 4e6)
    price.passed(10.0 + 2 * math.log(2), 0.25e6 * 2 * math.log(2))
    assert price.rate_bytes_per_s == pytest.approx(0.625e6)
    assert price.per_byte() == pytest.approx(0.5 / 0.625e6)
    price.leave(4e6)
    price.enter(1000.0, 1e6)  # idle until now, which is no sign of a slow link
    price.passed(1000.005, 10.0)
    assert price.rate_bytes_per_s == pytest.approx(0.625e6)
    price.passed(1000.0 + 2 * math.log(2), 1e6 * 2 * math.log(2) - 10.0)
    assert price.rate_bytes_per_s == pytest.approx(0.8125e6)


def test_the_backlog_is_counted_in_seconds_at_the_current_rate() -> None:
    slow, fast = (Price(1e6, scale_s=1.0, low=0.01, horizon_s=1e-3) for _ in range(2))
    for price, rate in ((slow, 1e5), (fast, 1e6)):
        price.enter(0.0, 1.5 * rate)
        price.passed(1.0, rate)
    assert fast.per_second() == pytest.approx(slow.per_second()) == pytest.approx(0.01 * math.e**0.5)  # half a second of work


def test_bytes_that_pass_an_idle_nic_do_not_reduce_a_later_backlog() -> None:
    price = Price(1e6)
    price.passed(1.0, 5e5)
    price.enter(2.0, 1e6)
    assert price.backlog_bytes == 1e6


def test_a_peers_price_falls_as_fast_as_its_nic_sends_its_backlog() -> None:
    price, peer = Price(1e6), PeerPrice()
    price.enter(0.0, 3e5)
    peer.update(0.0, price.per_byte())
    price.passed(0.2, 2e5)
    assert peer.per_byte(0.2) == pytest.approx(price.per_byte())
    assert peer.per_byte(0.0) > peer.per_byte(0.2)


@given(moves, st.floats(0, 1))
def test_the_price_stays_between_low_and_high(steps, share) -> None:
    price, now_s = Price(1e6), 0.0
    for later_s, size in steps:
        now_s += later_s
        price.enter(now_s, size)
        price.passed(now_s, share * size)
        assert price.low <= price.per_second() <= price.high


@given(moves, st.floats(0, 5e6), st.floats(0, 5e6))
def test_more_work_never_makes_it_cheaper(steps, extra, passed) -> None:
    less, more = Price(1e6), Price(1e6)
    more.enter(0.0, extra)
    for _, size in steps:
        for price in (less, more):
            price.enter(0.0, size)
    for price in (less, more):
        price.passed(0.0, passed)
    assert more.per_second() >= less.per_second() * (1 - 1e-12)


@given(moves)
def test_without_a_backlog_the_price_is_at_its_lowest(steps) -> None:
    price, now_s = Price(1e6), 0.0
    for seconds, size in steps:
        now_s += seconds
        price.enter(now_s, size)
    for _, size in steps:
        price.leave(size)
    assert price.per_second() == pytest.approx(price.low)


def test_an_unlimited_nic_has_no_price() -> None:
    price = Price(math.inf)
    price.enter(0.0, 1e12)
    assert price.per_byte() == 0.0


@pytest.mark.parametrize(
    "fields", [(0.0,), (1.0, 0.0), (1.0, -1.0), (1.0, 1.0, 0.0), (1.0, 1.0, 2.0, 1.0), (1.0, 1.0, 1.0, math.inf), (1.0, 1.0, 1.0, 1.0, 0.0)]
)
def test_impossible_fields_are_refused(fields) -> None:
    with pytest.raises(ValueError, match=r"is .*; it must be|low <= high must hold"):
        Price(*fields)


@given(curves(), st.floats(0, 10), st.floats(1, 10))
def test_the_cut_at_a_price_is_the_best_one_and_no_finer_at_a_higher_price(curve, price, factor) -> None:
    cost = [d + price * b for d, b in zip(curve.distortion, curve.bytes)]
    assert cost[curve.cut_at_price(price)] == min(cost)
    assert curve.cut_at_price(price * factor) <= curve.cut_at_price(price)
    assert curve.distortion[curve.cut_at_price(0.0)] == curve.distortion[-1]


def test_on_a_convex_curve_it_is_where_the_slope_falls_below_the_price() -> None:
    slopes = [(a - b) / (y - x) for a, b, x, y in zip(SLOPE.distortion, SLOPE.distortion[1:], SLOPE.bytes, SLOPE.bytes[1:])]
    assert slopes == sorted(slopes, reverse=True)
    for band, slope in enumerate(slopes, start=1):
        assert SLOPE.cut_at_price(slope * 0.99) == band
        assert SLOPE.cut_at_price(slope * 1.01) == band - 1


@given(view=views(), price=st.floats(0, 1e-3), factor=st.floats(1, 100))
def test_fleet_sends_no_more_at_a_higher_price(view, price, factor) -> None:
    view = replace(view, raw_s=1e9, lossless_bytes=0.0, hidden_s=0.0)  # no other mode is offered
    cheap, dear = (policy("fleet").decide(0.0, replace(view, price=p)).cut for p in (price, price * factor))
    assert dear <= cheap


def test_fleet_decides_as_worked_out_by_hand() -> None:
    """Asked is 0.005, so cut 5. Its band removes 0.0075 for 200 kB, the one before 0.032 for 200 kB. At most 0.3 is allowed, so cut 2
    where there is no time; the price may go a quarter of the way there, to 0.079, so to cut 3."""
    view = TransferView(1_000_000, 100.0, SLOPE, UNIFORM, encode_s=0.1, expand_s=0.1, raw_s=1e9)
    prices = (0.0, 3.7e-8, 3.8e-8, 1.5e-7, 1.7e-7, 1.0)
    assert [policy("fleet").decide(0.0, replace(view, price=price)).cut for price in prices] == [5, 5, 4, 4, 3, 3]
    assert policy("fleet").decide(0.0, replace(view, deadline_s=0.0)).cut == 2
    assert policy("fleet").decide(0.0, replace(view, deadline_s=0.65)).cut == 4  # 450 kB in time at 1 MB/s


def test_the_price_uses_a_quarter_of_the_saved_distortion_and_the_deadline_the_rest() -> None:
    """Asked is 0.04, cut 3; mean and most are 0.06 and 0.6. Ten at 0.04 have saved 0.2, so that one may have 0.26: cut 2 and no coarser."""
    of = policy("fleet", target_distortion=0.04, mean_distortion=0.06, max_distortion=0.6)
    view = TransferView(1_000_000, 100.0, SLOPE, UNIFORM, encode_s=0.1, expand_s=0.1, raw_s=1e9)
    for count, dear, late in ((0, 3, 3), (10, 3, 2), (30, 2, 1)):  # 0.095 and 0.26, 0.18 and 0.6 are allowed
        while of._budget._delivered < count:
            of.delivered(0.0, Delivered(0.04, of.decide(0.0, view), view, 0.1))
        assert of.decide(0.0, replace(view, price=1.0)).cut == dear
        assert of.decide(0.0, replace(view, deadline_s=0.0)).cut == late
        assert of.decide(0.0, replace(view, deadline_s=0.0, price=1.0)).cut == late

"""The price of a NIC, and what is sent at it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.price import Price
from abkt.policy.view import TransferView
from tests.policy.every import SLOPE, UNIFORM, policy, views
from tests.policy.test_curve import curves

moves = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 5e6)), max_size=12)  # (seconds later, bytes that then wait)


def test_by_hand() -> None:
    """1 MB/s, 1 s of work as it should be, price 0.01 and up."""
    price = Price(1e6, target_s=1.0, gain_per_s=1.0, low=0.01, high=100.0)
    assert price.per_second(5.0) == 0.01  # idle, and as low as it goes
    price.enter(5.0, 3e6)
    assert price.per_second(5.0) == 0.01
    assert price.per_second(7.0) == pytest.approx(0.01 * math.e**2)  # three times the target: up by e each second, and no faster
    assert price.per_byte(7.0) == pytest.approx(0.01 * math.e**2 / 1e6)
    price.leave(7.0, 1.5e6)
    assert price.per_second(8.0) == pytest.approx(0.01 * math.e**2.5)  # half above the target
    price.leave(8.0, 0.5e6)
    assert price.per_second(99.0) == pytest.approx(0.01 * math.e**2.5)  # at the target it stands
    price.leave(99.0, 1e6)
    assert price.per_second(101.0) == pytest.approx(0.01 * math.e**0.5)
    assert price.per_second(1e9) == 0.01
    price.enter(1e9, 1e9)
    assert price.per_second(2e9) == 100.0


def test_a_link_that_has_become_slower_is_dearer_by_as_much() -> None:
    """1 MB/s that comes to pass 0.25 MB a second: after ln 2 horizons half of the difference is known."""
    price = Price(1e6, target_s=4.0, gain_per_s=0.0, low=0.5, high=0.5, horizon_s=2.0)
    price.enter(10.0, 4e6)
    price.passed(10.0 + 2 * math.log(2), 0.25e6 * 2 * math.log(2))
    assert price.rate_bytes_per_s == pytest.approx(0.625e6)
    assert price.per_byte(12.0) == pytest.approx(0.5 / 0.625e6)
    price.leave(12.0, 4e6)
    price.enter(1000.0, 1e6)  # idle until now, which is no sign of a slow link
    price.passed(1000.005, 10.0)
    assert price.rate_bytes_per_s == pytest.approx(0.625e6)
    price.passed(1000.0 + 2 * math.log(2), 1e6 * 2 * math.log(2) - 10.0)
    assert price.rate_bytes_per_s == pytest.approx(0.8125e6)


def test_the_backlog_counts_in_seconds_of_the_rate_that_there_is() -> None:
    slow, fast = (Price(1e6, target_s=1.0, gain_per_s=1.0, horizon_s=1e-3) for _ in range(2))
    for price, rate in ((slow, 1e5), (fast, 1e6)):
        price.enter(0.0, 5e5)
        price.passed(1.0, rate)
    assert fast.per_second(2.0) == 0.01  # half a second of work
    assert slow.per_second(2.0) == pytest.approx(0.01 * math.e)  # five of it, known since a second ago


@given(moves, st.lists(st.floats(0, 30), max_size=5))
def test_asking_changes_nothing_and_the_price_stays_between_its_ends(steps, moments) -> None:
    asked, quiet, now_s = Price(1e6), Price(1e6), 0.0
    for later_s, size in steps:
        now_s += later_s
        for moment in moments:
            assert asked.low <= asked.per_second(moment) <= asked.high
        for price in (asked, quiet):
            price.enter(now_s, size)
    assert asked.per_second(now_s + 1) == quiet.per_second(now_s + 1)


@given(moves, st.floats(0, 5e6), st.floats(0, 10))
def test_more_work_never_makes_it_cheaper(steps, extra, later_s) -> None:
    less, more, now_s = Price(1e6), Price(1e6), 0.0
    more.enter(0.0, extra)
    for seconds, size in steps:
        now_s += seconds
        less.enter(now_s, size)
        more.enter(now_s, size)
    assert more.per_second(now_s + later_s) >= less.per_second(now_s + later_s) * (1 - 1e-12)


@given(moves)
def test_once_all_has_left_it_falls_to_its_lowest(steps) -> None:
    price, now_s = Price(1e6), 0.0
    for seconds, size in steps:
        now_s += seconds
        price.enter(now_s, size)
    for _, size in steps:
        price.leave(now_s, size)
    assert price.per_second(now_s + 20.0) == price.low


def test_an_unlimited_nic_has_no_price() -> None:
    price = Price(math.inf)
    price.enter(0.0, 1e12)
    assert price.per_byte(1e9) == 0.0


@pytest.mark.parametrize(
    "fields", [(0.0,), (1.0, 0.0), (1.0, 1.0, -1.0), (1.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 2.0, 1.0), (1.0, 1.0, 1.0, 1.0, 1.0, 0.0)]
)
def test_refused(fields) -> None:
    with pytest.raises(ValueError, match="price"):
        Price(*fields)


@given(curves(), st.floats(0, 10), st.floats(1, 10))
def test_the_cut_that_is_worth_a_price_is_the_best_one_and_no_finer_at_a_higher_price(curve, price, factor) -> None:
    cost = [d + price * b for d, b in zip(curve.distortion, curve.bytes)]
    assert cost[curve.cut_worth(price)] == min(cost)
    assert curve.cut_worth(price * factor) <= curve.cut_worth(price)
    assert curve.distortion[curve.cut_worth(0.0)] == curve.distortion[-1]


def test_on_a_convex_curve_it_is_where_the_slope_falls_below_the_price() -> None:
    slopes = [(a - b) / (y - x) for a, b, x, y in zip(SLOPE.distortion, SLOPE.distortion[1:], SLOPE.bytes, SLOPE.bytes[1:])]
    assert slopes == sorted(slopes, reverse=True)
    for band, slope in enumerate(slopes, start=1):
        assert SLOPE.cut_worth(slope * 0.99) == band
        assert SLOPE.cut_worth(slope * 1.01) == band - 1


@given(view=views(), price=st.floats(0, 1e-3), factor=st.floats(1, 100))
def test_fleet_sends_no_more_at_a_higher_price(view, price, factor) -> None:
    view = replace(view, raw_s=1e9, exact_bytes=0.0, hidden_s=0.0)  # nothing else can be had
    cheap, dear = (policy("fleet").decide(0.0, replace(view, price=p)).cut for p in (price, price * factor))
    assert dear <= cheap


def test_fleet_by_hand() -> None:
    """Asked is 0.005, so cut 5. Its band removes 0.0075 for 200 kB, the one before 0.032 for 200 kB. At most 0.3 is allowed, so
    cut 2, also where there is no time."""
    view = TransferView(1_000_000, 100.0, SLOPE, UNIFORM, encode_s=0.1, expand_s=0.1, raw_s=1e9)
    prices = (0.0, 3.7e-8, 3.8e-8, 1.5e-7, 1.7e-7, 1.0)
    assert [policy("fleet").decide(0.0, replace(view, price=price)).cut for price in prices] == [5, 5, 4, 4, 3, 2]
    assert policy("fleet").decide(0.0, replace(view, deadline_s=0.0)).cut == 2
    assert policy("fleet").decide(0.0, replace(view, deadline_s=0.65)).cut == 4  # 450 kB in time at 1 MB/s

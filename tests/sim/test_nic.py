from __future__ import annotations

import math

import pytest

from abkt.policy.price import Price
from sim.network.nic import NodeNic


class Heard(Price):
    heard: list[tuple[float, float]]

    def passed(self, now_s: float, wire_bytes: float) -> None:
        self.heard.append((now_s, wire_bytes))


def test_a_price_hears_of_all_that_passes_however_many_transfers_tell() -> None:
    """10 B/s from 0, 30 more from 2 to 5, the first ends at 6; nothing passes until another comes at 9."""
    price = Heard(1e3)
    price.heard = []
    nic = NodeNic(price)
    for now_s, more in ((0.0, 10.0), (2.0, 30.0), (5.0, -30.0), (6.0, -10.0), (9.0, 20.0), (10.0, -20.0)):
        nic.add_load(now_s, more)
    assert price.heard == [(2.0, 20.0), (5.0, 120.0), (6.0, 10.0), (10.0, 20.0)]
    assert nic.load == 0


def test_two_that_change_at_one_moment_are_told_once() -> None:
    price = Heard(1e3)
    price.heard = []
    nic = NodeNic(price)
    for now_s, more in ((0.0, 10.0), (0.0, 10.0), (1.0, -5.0), (1.0, -5.0)):
        nic.add_load(now_s, more)
    assert price.heard == [(1.0, 20.0)]
    assert nic.load == pytest.approx(10.0)


def test_an_unlimited_nic_asks_nothing() -> None:
    price = Heard(math.inf)
    price.heard = []
    nic = NodeNic(price)
    nic.add_load(0.0, math.inf)
    nic.add_load(1.0, -math.inf)
    assert not price.heard


def test_who_asks_for_the_price_hears_what_has_passed_until_now() -> None:
    """1,000 bytes wait for 100 B/s: 10 s of work, of which a second later 9 are left."""
    nic = NodeNic(Price(100.0, scale_s=1.0, low=1.0, high=1e9))
    nic.price.enter(0.0, 1e3)
    nic.add_load(0.0, 100.0)
    assert nic.per_byte(0.0) == pytest.approx(math.e**10 / 100)
    assert nic.per_byte(1.0) == nic.per_byte(1.0) == pytest.approx(math.e**9 / 100)

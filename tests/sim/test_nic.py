from __future__ import annotations

import math

import pytest

from abkt.policy.price import Price
from sim.network.nic import NodeNic


class Heard(Price):
    heard: list[tuple[float, float]]

    def passed(self, now_s: float, wire_bytes: float) -> None:
        self.heard.append((now_s, wire_bytes))


def test_a_price_is_told_all_bytes_of_all_transfers_of_its_nic() -> None:
    """One transfer sends 10 B/s from 0 s to 6 s, another 30 B/s from 2 s to 5 s. Nothing passes until a third one starts at 9 s."""
    price = Heard(1e3)
    price.heard = []
    nic = NodeNic(price)
    for now_s, more in ((0.0, 10.0), (2.0, 30.0), (5.0, -30.0), (6.0, -10.0), (9.0, 20.0), (10.0, -20.0)):
        nic.add_load(now_s, more)
    assert price.heard == [(2.0, 20.0), (5.0, 120.0), (6.0, 10.0), (10.0, 20.0)]
    assert nic.load == 0


def test_two_changes_at_the_same_time_are_told_once() -> None:
    price = Heard(1e3)
    price.heard = []
    nic = NodeNic(price)
    for now_s, more in ((0.0, 10.0), (0.0, 10.0), (1.0, -5.0), (1.0, -5.0)):
        nic.add_load(now_s, more)
    assert price.heard == [(1.0, 20.0)]
    assert nic.load == pytest.approx(10.0)


def test_an_unlimited_nic_does_not_update_its_price() -> None:
    price = Heard(math.inf)
    price.heard = []
    nic = NodeNic(price)
    nic.add_load(0.0, math.inf)
    nic.add_load(1.0, -math.inf)
    assert not price.heard


def test_the_price_counts_all_bytes_that_have_passed_when_it_is_read() -> None:
    """1,000 bytes wait for a NIC of 100 B/s, which is 10 s of work. One second later 9 s are left."""
    nic = NodeNic(Price(100.0, scale_s=1.0, low=1.0, high=1e9))
    nic.price.enter(0.0, 1e3)
    nic.add_load(0.0, 100.0)
    assert nic.per_byte(0.0) == pytest.approx(math.e**10 / 100)
    assert nic.per_byte(1.0) == nic.per_byte(1.0) == pytest.approx(math.e**9 / 100)

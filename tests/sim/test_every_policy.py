"""Every bitrate policy in the simulator, the lossless mode by hand, and what the simulator shows a policy."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from abkt.capacity import Capacity
from abkt.policy.bitrate.lossless import Lossless
from abkt.policy.build import build
from abkt.policy.price import Price
from abkt.policy.routing.load_aware import LoadAwareRouting
from abkt.policy.routing.round_robin import RoundRobin
from abkt.policy.view import Decision
from abkt.profile.expect import curve_for
from abkt.profile.schema import Profile
from abkt.records import SLO
from sim.workload.requests import Request
from tests.policy.every import POLICIES, configs
from tests.sim.conftest import exact as fit
from tests.sim.test_cluster import Scripted, cluster, run, stream

SHARE = 0.7


@pytest.fixture
def full(profile: Profile) -> Profile:
    """The toy machine with the lossless mode."""
    fits = {"encode/lossless": fit({"1": 0.00007, "tokens": 3.1e-6}), "expand/lossless": fit({"1": 0.00005, "tokens": 2.3e-6})}
    return replace(profile, fits={**profile.fits, **fits}, lossless_share=SHARE)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_completes_all_requests_and_gives_the_same_records_again(full, name) -> None:
    """Two prefill nodes send over links that fall to a seventh and recover. Their load is more than the links can carry raw."""
    requests = [Request(i, 0.03 * i, 40 + 37 * i % 200, 2 + 11 * i % 20) for i in range(40)]
    of = cluster(full, 2, 2, rate=Capacity((0.0, 0.3, 0.5), (2.1e5, 3e4, 1.3e5), 0.7))
    first, second = (run(of, requests, lambda: build(configs(1e5)[name]), LoadAwareRouting(), SLO(0.3, 0.02)) for _ in range(2))
    assert [r.outcome for r in first.requests] == ["completed"] * 40
    assert repr(first.requests) == repr(second.requests)
    assert repr(first.transfers) == repr(second.transfers)
    for transfer in first.transfers:
        whole = {"raw": transfer.raw_bytes, "lossless": round(SHARE * transfer.raw_bytes)}.get(transfer.mode)
        assert transfer.wire_bytes == (whole or transfer.wire_bytes)
        assert (transfer.distortion_final == 0) == (transfer.mode != "stream")
        assert transfer.price > 0


def test_one_lossless_request_has_the_times_worked_out_by_hand(full) -> None:
    result = run(cluster(full), [Request(2, 0.0, 100, 2)], Lossless)
    (record,), (transfer,) = result.requests, result.transfers
    assert record.encode_busy_s == pytest.approx(0.00007 + 100 * 3.1e-6)
    assert record.wire_busy_s == pytest.approx(SHARE * 6400 / 1e5 + 0.00047)
    assert record.expand_busy_s == pytest.approx(0.00005 + 100 * 2.3e-6)
    assert record.distortion_token_weighted == 0.0
    assert (transfer.mode, transfer.order, transfer.wire_bytes, transfer.calls) == ("lossless", "", 4480, 1)
    assert transfer.bits_per_value == pytest.approx(16 * SHARE)


def test_a_lossless_decision_is_refused_where_the_profile_lacks_the_mode(profile) -> None:
    with pytest.raises(ValueError, match="run `abkt profile` again") as caught:
        run(cluster(profile), [Request(0, 0.0, 100, 2)], Lossless)
    assert "\n" not in str(caught.value)


def test_an_encoded_transfer_offers_no_other_mode(full) -> None:
    policy = Scripted([stream(3)])
    run(cluster(full), [Request(0, 0.0, 100, 2)], lambda: policy)
    first, *later = [view for _, view in policy.views]
    assert first.lossless_bytes == pytest.approx(SHARE * 6400)
    assert first.raw_s < 1
    assert later
    assert all((view.encode_s, view.raw_s, view.lossless_bytes) == (0.0, float("inf"), 0.0) for view in later)


def test_a_decision_sees_the_requests_own_curve_and_a_quote_does_not(full) -> None:
    policy = Scripted([stream(3)])
    run(cluster(full, decode=2), [Request(3, 0.0, 100, 2)], lambda: policy, LoadAwareRouting())
    own = curve_for(full, 100, draw=3).slope
    assert own != curve_for(full, 100).slope
    shown = [view.own_slope for _, view in policy.views]
    assert shown.count(own) == 1
    assert set(shown) == {own, None}


class Recorded(Price):
    """A price that records its answers. All instances are recorded in the order in which they were made."""

    made: list[Recorded]

    def __init__(self, bytes_per_s: float) -> None:
        super().__init__(bytes_per_s)
        self.made.append(self)
        self.answers: list[float] = []

    def per_byte(self) -> float:
        self.answers.append(super().per_byte())
        return self.answers[-1]


@pytest.fixture
def prices(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    Recorded.made = []
    monkeypatch.setattr("sim.nodes.Price", Recorded)
    return Recorded.made


def test_a_view_has_the_higher_price_of_the_two_ends(full, prices) -> None:
    """Three prefill nodes send to one decode node. Its link is the bottleneck, so the work waits there."""
    policies: list[Scripted] = []

    def scripted() -> Scripted:
        policies.append(Scripted([stream(5)]))
        return policies[-1]

    of = cluster(full, prefill=3, rate=1e5)
    result = run(of, [Request(i, 0.02 * i, 200, 2) for i in range(9)], scripted)
    *senders, receiver = prices
    seen = [view.price for policy in policies for _, view in policy.views]
    assert set(seen) <= set(receiver.answers) | {answer for price in senders for answer in price.answers}
    assert min(seen) == pytest.approx(receiver.low / 1e5)
    assert max(seen) == max(receiver.answers) > max(max(price.answers) for price in senders)
    assert receiver.backlog_bytes == pytest.approx(0.0)  # all bytes have left
    first, *_, last = result.transfers
    own = math.exp(first.wire_bytes / 1e5 / receiver.scale_s)  # its own bytes wait as well
    assert last.price > first.price == pytest.approx(receiver.low * own / 1e5)


def test_fleet_sends_fewer_bits_over_a_busier_link(full) -> None:
    def bits(gap_s: float) -> float:
        requests = [Request(i, gap_s * i, 200, 2) for i in range(60)]
        result = run(cluster(full, prefill=2, rate=1.5e4), requests, lambda: build(configs(1.5e4)["fleet"]), RoundRobin(), SLO(1.0, 0.02))
        return sum(t.bits_per_value for t in result.transfers) / len(result.transfers)

    assert bits(0.02) < bits(0.2) < bits(2.0)


@pytest.mark.parametrize("mode", ["raw", "lossless"])
def test_the_policy_is_asked_once_about_a_raw_or_lossless_transfer(full, mode) -> None:
    policy = Scripted([Decision(mode), stream(1)])
    (transfer,) = run(cluster(full, rate=Capacity((0.0, 0.05), (1e5, 3e4))), [Request(0, 0.0, 100, 2)], lambda: policy).transfers
    assert len(policy.views) == 1
    assert transfer.mode == mode
    assert len(policy.samples) == 2

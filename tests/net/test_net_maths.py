"""The parts of abkt.net that need no network: token buckets, layouts, delay lines, the relay's loop, and schedules."""

from __future__ import annotations

import math
import os
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.net.bucket import TokenBucket, payload_share
from abkt.net.delay_line import DelayLine
from abkt.net.layout import HUB, Layout, LinkEnd
from abkt.net.relay import Relay
from abkt.net.schedule import ScheduleFollower, rate_at

FRAME = 1514


@given(st.floats(1.0, 1e10), st.floats(0.001, 0.01))
def test_a_bucket_keeps_its_rate_with_a_timer_of_one_tick(bytes_per_s: float, tick_s: float) -> None:
    bucket = TokenBucket.of(bytes_per_s, 1500, tick_s)
    assert bucket.burst_bytes >= bytes_per_s * tick_s - 1
    assert bucket.burst_bytes >= 2 * FRAME
    queue = bucket.limit_bytes - bucket.burst_bytes
    assert queue == pytest.approx(max(10 * FRAME, bytes_per_s * 0.05), abs=1)


def test_the_tc_arguments_of_a_bucket() -> None:
    """10 Mbit/s: 5,000 bytes a tick of 4 ms, and 62,500 bytes in 50 ms."""
    assert TokenBucket.of(1.25e6, 1500, 0.004).tc_arguments() == ("tbf", "rate", "10000000bit", "burst", "5000b", "limit", "67500b")
    assert payload_share(1500) == pytest.approx(1448 / 1514)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_bucket_without_a_finite_positive_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="finite number above 0"):
        TokenBucket.of(rate, 1500)


def test_two_nodes_are_a_pair_and_more_share_the_receivers_port() -> None:
    assert Layout(1).shaped() == (LinkEnd("p0", "eth0"), LinkEnd("d0", "eth0"))
    assert len(Layout(1).links()) == 1
    star = Layout(4, relayed=True)
    assert star.namespaces == ("p0", "p1", "p2", "p3", "d0", HUB)
    assert LinkEnd(HUB, "d0") in star.shaped()
    assert [link.relayed for link in star.links()] == [False] * 4 + [True]
    assert len({star.address(node) for node in star.nodes}) == len({star.mac_address(node) for node in star.nodes}) == 5
    with pytest.raises(ValueError, match="0 senders"):
        Layout(0)
    with pytest.raises(ValueError, match="245 senders and 6 receivers"):
        Layout(245, receivers=6)


def test_any_node_of_many_may_send_to_any_other() -> None:
    """So every port is shaped, whichever roles the nodes have."""
    many = Layout(2, receivers=2)
    assert many.nodes == ("p0", "p1", "d0", "d1")
    assert set(many.shaped()) == {LinkEnd(node, "eth0") for node in many.nodes} | {LinkEnd(HUB, node) for node in many.nodes}
    with pytest.raises(ValueError, match="one receiver's link, and there are 2"):
        Layout(2, relayed=True, receivers=2)


def test_device_names_are_short_enough_for_the_kernel() -> None:
    assert all(len(end.device) <= 15 for link in Layout(200, receivers=50).links() for end in (link.a, link.b))


@given(st.lists(st.floats(0, 0.01), max_size=40), st.floats(0, 0.05))
def test_packets_leave_in_order_and_not_before_they_are_due(gaps: list[float], delay_s: float) -> None:
    line, now_s, sent, out = DelayLine(delay_s, 0.0, seed=0), 0.0, [], []
    for number, gap_s in enumerate(gaps):
        now_s += gap_s
        line.put(now_s, bytes([number]))
        sent.append(now_s)
        while (packet := line.take(now_s)) is not None:
            out.append(packet[0])
            assert sent[packet[0]] + delay_s <= now_s
    while math.isfinite(line.next_s()):
        packet = line.take(line.next_s())
        assert packet is not None
        out.append(packet[0])
    assert out == list(range(len(gaps)))
    assert (line.passed, line.lost) == (len(gaps), 0)


def test_loss_is_as_configured_and_repeats_with_the_seed() -> None:
    def lost(seed: int) -> list[int]:
        line = DelayLine(0.0, 0.01, seed)
        before, gone = 0, []
        for number in range(20_000):
            line.put(0.0, b"")
            if line.lost > before:
                gone.append(number)
            before = line.lost
        return gone

    assert lost(1) == lost(1) != lost(2)
    assert len(lost(1)) == pytest.approx(200, abs=60)  # more than four standard deviations


@pytest.mark.parametrize(("delay_s", "loss", "said"), [(-1, 0, "delay_s"), (math.inf, 0, "delay_s"), (0, 1, "loss"), (0, -0.1, "loss")])
def test_an_impossible_delay_or_loss_is_refused(delay_s: float, loss: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DelayLine(delay_s, loss, 0)


def test_a_relay_passes_frames_both_ways_and_counts_them() -> None:
    """Over two pairs of datagram sockets, which preserve frame boundaries like TAP devices."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    (near, a), (far, b) = pairs
    control, tell = os.pipe()
    for end in (near, far, a, b):
        end.setblocking(False)
    relay = Relay([a.fileno(), b.fileno()], [DelayLine(0.02, 0.0, 0), DelayLine(0.02, 0.0, 1)], 2048)
    sent_s = time.monotonic()
    for word in (b"one", b"two"):
        near.send(word)
        far.send(word.upper())
    while relay.report()["passed"] < 4:
        assert not relay.step(control)
        assert time.monotonic() - sent_s < 30
    assert time.monotonic() - sent_s >= 0.02
    assert [far.recv(99) for _ in range(2)] == [b"one", b"two"]
    assert [near.recv(99) for _ in range(2)] == [b"ONE", b"TWO"]
    os.write(tell, b"?")
    assert relay.step(control)
    for end in (near, far, a, b):
        end.close()
    os.close(control)
    os.close(tell)


OSCILLATING = Capacity((0.0, 0.05), (100.0, 10.0), 0.1)


def test_a_schedule_holds_its_first_rate_before_it_starts() -> None:
    assert rate_at(OSCILLATING, -0.01) == (100.0, 0.05)
    assert rate_at(OSCILLATING, 0.06) == (10.0, 0.1)
    assert rate_at(Capacity.constant(5.0), -1.0) == (5.0, math.inf)


@given(
    st.floats(0, 1e5), st.sampled_from([OSCILLATING, Capacity((0.0, 15.0, 30.0), (1.0, 2.0, 3.0), 60.0), Capacity((0.0, 1.0), (1.0, 2.0))])
)
def test_the_next_change_is_in_the_future(now_s: float, capacity: Capacity) -> None:
    rate, change_s = rate_at(capacity, now_s)
    assert change_s > now_s
    assert rate in capacity.bytes_per_s


def test_a_follower_sets_each_rate_when_it_changes() -> None:
    set_s: list[tuple[float, float]] = []
    origin_s = time.monotonic() + 0.02
    with ScheduleFollower(OSCILLATING, lambda rate: set_s.append((time.monotonic() - origin_s, rate)), origin_s) as follower:
        while len(set_s) < 5:
            assert time.monotonic() - origin_s < 30
            time.sleep(0.01)
    assert [rate for _, rate in set_s[:5]] == [100.0, 10.0, 100.0, 10.0, 100.0]
    assert all(at_s >= 0.05 * i for i, (at_s, _) in enumerate(set_s[1:5], 1))
    assert follower.changes >= 4
    assert not [thread for thread in threading.enumerate() if thread.name == "follow"]


def test_a_constant_rate_needs_no_thread() -> None:
    rates: list[float] = []
    with ScheduleFollower(Capacity.constant(7.0), rates.append, time.monotonic()):
        assert not [thread for thread in threading.enumerate() if thread.name == "follow"]
    assert rates == [7.0]


def test_an_error_while_following_is_raised_on_leaving() -> None:
    def shape(rate: float) -> None:
        if rate == 10.0:
            raise OSError("the link is gone")

    follower = ScheduleFollower(OSCILLATING, shape, time.monotonic())
    with pytest.raises(OSError, match="the link is gone"), follower:
        follower._thread.join(timeout=30)


def test_the_thread_ends_after_the_last_change() -> None:
    rates: list[float] = []
    with ScheduleFollower(Capacity((0.0, 0.01), (1.0, 2.0)), rates.append, time.monotonic()) as follower:
        follower._thread.join(timeout=30)
        assert not follower._thread.is_alive()
    assert rates == [1.0, 2.0]

"""The paced link, on a clock that advances only by sleeping."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.transfer.link import PacedLink

DROP = Capacity((0.0, 1.0, 2.0), (1000.0, 100.0, 500.0))


def test_a_frame_is_released_when_its_last_byte_has_passed(fake_clock):
    """The link carries 1,000 bytes in the first second, 100 in the next, 500 in the third: 1,350 bytes take 2.5 s."""
    link = PacedLink(DROP, clock=fake_clock(10.0), origin_s=10.0)
    assert link.book(1350, 10.0) == pytest.approx(12.5)


@given(st.lists(st.tuples(st.integers(1, 700), st.floats(0, 1)), min_size=1, max_size=30))
def test_a_stream_of_frames_takes_as_long_as_its_bytes(fake_clock, frames):
    """The sender may be late with each frame by up to the frame's own time; the link then counts the frame as queued."""
    clock = fake_clock()
    link = PacedLink(DROP, clock=clock)
    passed_s, ready_s = 0.0, math.inf
    for size, late in frames:
        if math.isfinite(ready_s):
            clock.now_s = passed_s + 0.999 * late * (DROP.finish_s(passed_s, size) - passed_s)
        passed_s = ready_s = link.book(size, ready_s)
    assert passed_s == pytest.approx(DROP.finish_s(0.0, sum(size for size, _ in frames)))


def test_an_idle_link_accumulates_no_credit(fake_clock):
    clock = fake_clock()
    link = PacedLink(Capacity.constant(100.0), clock=clock)
    assert link.book(100, math.inf) == 1.0
    clock.now_s = 5.0
    assert link.book(100, math.inf) == 6.0  # a new transfer, which could not have been queued before
    clock.now_s = 20.0
    assert link.book(100, 6.0) == 20.0  # the sender of a stream is much too late: the frame passes now, not earlier
    assert link.book(100, math.inf) == 21.0


def test_senders_share_a_link_first_come_first_served(fake_clock):
    link = PacedLink(Capacity.constant(100.0), clock=fake_clock())
    assert [link.book(100, math.inf), link.book(200, math.inf), link.book(100, 1.0)] == [1.0, 3.0, 4.0]


def test_an_unlimited_link_never_waits(fake_clock):
    link = PacedLink(clock=fake_clock(3.0))
    assert [link.book(1 << 30, math.inf), link.book(1 << 30, 1.0)] == [3.0, 3.0]

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.capacity import Capacity


@st.composite
def schedules(draw) -> Capacity:
    starts = [0.0]
    for gap in draw(st.lists(st.floats(0.01, 10), max_size=5)):
        starts.append(starts[-1] + gap)
    period = draw(st.one_of(st.just(math.inf), st.floats(0.01, 10).map(lambda tail: starts[-1] + tail)))
    return Capacity(tuple(starts), tuple(draw(st.floats(0.5, 1e6)) for _ in starts), period)


def unrolled(capacity: Capacity, until_s: float) -> list[tuple[float, float]]:
    """(start, rate) up to until_s, cycle by cycle."""
    cycles = 1 if math.isinf(capacity.period_s) else int(until_s / capacity.period_s) + 2
    period = 0.0 if math.isinf(capacity.period_s) else capacity.period_s
    return [(cycle * period + start, rate) for cycle in range(cycles) for start, rate in zip(capacity.starts_s, capacity.bytes_per_s)]


@given(schedules(), st.floats(0, 200))
def test_the_rate_at_a_moment(capacity, now_s) -> None:
    steps = unrolled(capacity, now_s)
    if any(abs(start - now_s) < 1e-6 for start, _ in steps):
        return  # at a change itself, rounding decides which side it is
    rate, change_s = capacity.at(now_s)
    assert rate == [r for start, r in steps if start <= now_s][-1]
    later = [start for start, _ in steps if start > now_s]
    if math.isinf(capacity.period_s) or len(capacity.starts_s) > 1:
        assert change_s == pytest.approx(min(later, default=math.inf))


@given(schedules(), st.integers(0, 60))
def test_following_the_changes_goes_forward_through_every_one(capacity, steps) -> None:
    """As an event loop does: no change is skipped or found twice, however the sums of periods are rounded."""
    now_s = 0.0
    expected = [start for start, _ in unrolled(capacity, 0.0 if math.isinf(capacity.period_s) else steps * capacity.period_s)]
    for i in range(1, steps + 1):
        _, change_s = capacity.at(now_s)
        if math.isinf(change_s):
            break
        assert change_s > now_s
        if len(capacity.starts_s) > 1 and i < len(expected):
            assert change_s == pytest.approx(expected[i], rel=1e-7, abs=1e-7)
        now_s = change_s


@given(schedules(), st.floats(0, 50), st.floats(0, 1e5))
def test_finish_is_when_the_integral_reaches_the_size(capacity, now_s, size) -> None:
    end_s = capacity.finish_s(now_s, size)
    edges = [now_s, *[start for start, _ in unrolled(capacity, end_s) if now_s < start < end_s], end_s]
    passed = sum((b - a) * capacity.at((a + b) / 2)[0] for a, b in itertools.pairwise(edges) if b - a > 1e-7)
    assert passed == pytest.approx(size, rel=1e-6, abs=1e-6 * max(capacity.bytes_per_s))


@given(schedules(), st.floats(0, 50), st.floats(0, 1e5), st.floats(0, 1e5))
def test_sending_in_two_parts_ends_at_the_same_time(capacity, now_s, first, second) -> None:
    assert capacity.finish_s(capacity.finish_s(now_s, first), second) == pytest.approx(
        capacity.finish_s(now_s, first + second), rel=1e-9, abs=1e-6
    )


def test_sending_over_a_schedule_ends_as_worked_out_by_hand() -> None:
    drop = Capacity((0.0, 1.0, 3.0), (10.0, 1.0, 10.0), 4.0)
    assert drop.at(0.5) == (10.0, 1.0)
    assert drop.at(2.0) == (1.0, 3.0)
    assert drop.at(3.5) == (10.0, 4.0)
    assert drop.at(5.5) == (1.0, 7.0)
    assert drop.finish_s(0.0, 11.0) == 2.0
    assert drop.finish_s(0.5, 17.0) == 4.0
    assert drop.finish_s(0.0, 33.0) == 6.0
    assert Capacity.constant(4.0).finish_s(1.0, 8.0) == 3.0
    assert Capacity.constant(math.inf).finish_s(1.0, 8.0) == 1.0


@pytest.mark.parametrize(
    ("starts", "rates", "period"),
    [
        ((), (), math.inf),
        ((1.0,), (1.0,), math.inf),
        ((0.0, 2.0, 1.0), (1.0, 1.0, 1.0), math.inf),
        ((0.0, 2.0), (1.0, 1.0), 2.0),
        ((0.0,), (0.0,), math.inf),
        ((0.0,), (1.0, 2.0), math.inf),
    ],
)
def test_impossible_schedules_are_refused(starts, rates, period) -> None:
    with pytest.raises(ValueError, match=r"capacity|it must be above 0"):
        Capacity(starts, rates, period)

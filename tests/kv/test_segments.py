"""Properties of the allocator: no overlap, no leak, best fit, fewest segments, and one free segment after everything is freed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.kv.segments import Segments


def pieces(table: list[int]) -> int:
    return sum(b != a + 1 for a, b in pairwise(table)) + 1 if table else 0


def gaps(held: set[int], blocks: int) -> list[tuple[int, int]]:
    """Maximal free segments, found by looking at every block."""
    found, start = [], None
    for block in range(blocks + 1):
        free = block < blocks and block not in held
        if free and start is None:
            start = block
        if not free and start is not None:
            found.append((start, block - start))
            start = None
    return found


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_any_sequence_of_calls_keeps_the_free_segments_right(blocks, history):
    segments, live, held = Segments(blocks), [], set()
    for allocate, number in history:
        if allocate:
            before = gaps(held, blocks)
            assert segments.can_allocate(number) == (number <= blocks - len(held))
            if not segments.can_allocate(number):
                with pytest.raises(ValueError, match="are free"):
                    segments.allocate(number)
                continue
            table = segments.allocate(number)
            assert len(table) == len(set(table)) == number
            assert not held & set(table), "a block was given twice"
            fitting = [length for _, length in before if length >= number]
            longest_first, needed, left = sorted((n for _, n in before), reverse=True), 0, number
            while left > 0:
                left -= longest_first[needed]
                needed += 1
            assert pieces(table) <= max(needed, 0), "more segments than needed"
            if number and fitting:
                home = next(length for first, length in before if first <= table[0] < first + length)
                assert home == min(fitting), "not the best fit"
            live.append(table)
            held |= set(table)
        elif live:
            table = live.pop(number % len(live))
            segments.free(table)
            held -= set(table)
        assert segments.segments == gaps(held, blocks)
        assert segments.free_blocks == blocks - len(held)
    for table in live:
        segments.free(table)
    assert segments.segments == [(0, blocks)]


def test_allocation_takes_the_best_fit():
    segments = Segments(12)
    a, b, c, d = (segments.allocate(n) for n in (3, 1, 2, 6))
    segments.free(a)
    segments.free(c)
    assert segments.segments == [(0, 3), (4, 2)]
    assert segments.allocate(2) == [4, 5], "the gap of 2 fits better than the one of 3"
    segments.free(d)
    assert segments.allocate(8) == [6, 7, 8, 9, 10, 11, 0, 1], "no gap of 8: the longest first, then the best fit"
    segments.free(b)
    assert segments.segments == [(2, 2)]


def test_wrong_frees_are_refused_and_free_nothing():
    segments = Segments(6)
    table = segments.allocate(4)
    for wrong, message in (([1, 5], "5 is already free"), ([0, 6], "6 is not in"), ([-1], "-1 is not in"), ([2, 2], "twice")):
        with pytest.raises(ValueError, match=message):
            segments.free(wrong)
        assert segments.segments == [(4, 2)]
    segments.free(table)
    with pytest.raises(ValueError, match="already free"):
        segments.free(table)

"""Runs cover exactly the two tables, in order, and are broken only where a side is not adjacent."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.kv.runs import BlockRun, aligned_runs
from abkt.kv.segments import Segments


@given(st.data())
def test_runs_cover_exactly_the_tables(data):
    size = data.draw(st.integers(0, 24))
    tables = st.lists(st.integers(0, 30), min_size=size, max_size=size, unique=True).map(
        lambda t: sorted(t) if len(t) % 2 else t  # sorted ones have longer runs
    )
    source, destination = data.draw(tables), data.draw(tables)
    runs = aligned_runs(source, destination)
    assert [run.source + i for run in runs for i in range(run.blocks)] == source
    assert [run.destination + i for run in runs for i in range(run.blocks)] == destination
    for a, b in pairwise(runs):
        both_adjacent = a.source + a.blocks == b.source and a.destination + a.blocks == b.destination
        assert not both_adjacent, "a run was broken without need"


def test_two_tables_give_the_runs_worked_out_by_hand():
    assert aligned_runs([3, 4, 5, 9], [0, 1, 7, 8]) == [BlockRun(3, 0, 2), BlockRun(5, 7, 1), BlockRun(9, 8, 1)]
    assert aligned_runs([], []) == []
    fresh = Segments(64).allocate(50)
    assert aligned_runs(fresh, Segments(50).allocate(50)) == [BlockRun(0, 0, 50)]


def test_tables_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="2 and 3"):
        aligned_runs([1, 2], [1, 2, 3])

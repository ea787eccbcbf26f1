from __future__ import annotations

import math
from heapq import heappop, heappush
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import agenda
from sim.agenda import Agenda


def delays(random: Random, kind: str) -> float:
    if kind == "ties":
        return random.choice((0.0, 0.25, 0.5))
    if kind == "far":
        return random.choice((0.0, 1e-9, random.random(), 1e6 * random.random(), math.inf))
    return random.expovariate(1.0)


@pytest.mark.parametrize("kind", ["ties", "far", "random"])
@given(st.integers(0, 1 << 30), st.integers(1, 3000))
def test_entries_come_in_the_order_of_one_heap(kind: str, seed: int, held: int) -> None:
    """The oracle is heapq. Entries are added at or after the present time, as timers are; some go before the others of their time."""
    random, ours, heap, number, now_s = Random(seed), Agenda(), [], 0, 0.0
    for step in range(2 * held):
        if heap and (random.random() < 0.5 or step > 1.5 * held):
            assert ours.first() == heap[0]
            taken = ours.take()
            assert taken == heappop(heap)
            now_s = taken[0] if taken[0] < math.inf else now_s
        else:
            number += 1
            entry = (now_s + delays(random, kind), number - (1 << 62 if random.random() < 0.1 and now_s < math.inf else 0), None)
            ours.add(entry)
            heappush(heap, entry)
    assert sorted(ours) == sorted(heap)
    while heap:
        assert ours.take() == heappop(heap)
    assert ours.is_empty()


def test_a_long_queue_compares_with_few_entries() -> None:
    """Of 20,000 entries, each is in a heap with a few others only, and the width follows when events become a thousand times denser."""
    random, ours, sizes, now_s = Random(1), Agenda(), [], 0.0
    for rate in (1.0, 1e-3):
        for number in range(20_000):
            ours.add((now_s + rate * random.random(), number, None))
        for number in range(40_000):
            now_s = ours.take()[0]
            ours.add((now_s + rate * random.random(), number, None))
            sizes.append(len(ours.near))
        assert sum(sizes[-20_000:]) / 20_000 < agenda.MOST

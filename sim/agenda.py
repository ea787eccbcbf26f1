"""The queue of a simulation's events, in order of (time, number).

A heap of thousands of entries costs a dozen comparisons for each event. So entries that are not due soon lie unordered in buckets, one for
each `width_s` of time, and only the present bucket is a heap. The width follows the number of entries, so that a bucket has a few. It is a
power of 2, so that no time is rounded into another bucket: the order of the events is that of one heap, whatever the width is. A short
queue is one heap.

Source: Brown, Calendar queues (CACM 31(10), 1988).
Not modelled: the time that handling an event takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Final

Entry = tuple[float, int, Any]  # time, number, event

FEW: Final = 256  # entries of one heap
NEAREST: Final = 256  # entries whose times set the width
USUAL: Final = 6  # entries of a bucket that a new width aims at
LEAST: Final = 2  # mean of entries of a bucket below which buckets get wider
MOST: Final = 16  # and above which they get narrower
LOOKED_AT: Final = 256  # buckets of that mean
LAST: Final = 1 << 60  # number of the last bucket, which has no end
NEVER: Final = math.inf


class Agenda:
    """near: heap of the entries before until_s. far: bucket number -> its entries, in no order. order: heap of these numbers."""

    def __init__(self) -> None:
        self.near: list[Entry] = []
        self.far: dict[int, list[Entry]] = {}
        self.order: list[int] = []
        self.until_s = NEVER
        self.width_s = 1.0
        self.most = FEW  # entries of `near` above which they are spread
        self.opened = 0  # buckets opened since the width was last judged
        self.found = 0  # entries in them

    def __iter__(self) -> Iterator[Entry]:
        """All entries, in no order."""
        return iter([*self.near, *[entry for bucket in self.far.values() for entry in bucket]])

    def is_empty(self) -> bool:
        return not self.near and not self.order

    def add(self, entry: Entry) -> None:
        if entry[0] < self.until_s or self.until_s == NEVER:
            heappush(self.near, entry)
            if len(self.near) > self.most:
                self.spread()
        else:
            self.put_off(entry)

    def put_off(self, entry: Entry) -> None:
        number = int(entry[0] / self.width_s) if entry[0] < LAST * self.width_s else LAST
        bucket = self.far.get(number)
        if bucket is None:
            self.far[number] = [entry]
            heappush(self.order, number)
        else:
            bucket.append(entry)

    def first(self) -> Entry:
        """The first entry, which stays."""
        while not self.near:  # a new width leaves none in it
            self.open_bucket()
        return self.near[0]

    def take(self) -> Entry:
        """Remove the first entry."""
        while not self.near:
            self.open_bucket()
        return heappop(self.near)

    def open_bucket(self) -> None:
        """Go on with the next bucket, because the present one is empty."""
        number = heappop(self.order)
        near = self.near = self.far.pop(number)
        heapify(near)
        self.until_s = (number + 1) * self.width_s if number < LAST else NEVER
        self.opened += 1
        self.found += len(near)
        if self.opened == LOOKED_AT:
            if not LEAST * LOOKED_AT <= self.found <= MOST * LOOKED_AT:
                self.spread()
            self.opened = self.found = 0

    def spread(self) -> None:
        """Choose the width by the nearest entries, and put all into buckets again. If these are of one time, all stay in one heap."""
        entries = sorted(self)
        nearest = entries[: NEAREST + 1]
        mean_s = (nearest[-1][0] - nearest[0][0]) / len(nearest)
        self.near, self.far, self.order, self.until_s = entries, {}, [], NEVER  # a sorted list is a heap
        self.most = max(FEW, 2 * len(entries))
        if len(entries) <= FEW or not 0.0 < mean_s < NEVER:
            return
        self.width_s = math.ldexp(1.0, math.frexp(USUAL * mean_s)[1] - 1)
        self.near, self.until_s, self.most = [], -NEVER, FEW
        for entry in entries:
            self.put_off(entry)
        heapify(self.order)

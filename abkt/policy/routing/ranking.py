"""Nodes sorted by their load, kept up to date, so that a decision among a thousand nodes compares only a few.

A node's load changes several times per request but is read once. So a change only marks the node (`changed.add(node)`), and the next
query moves the marked nodes: O(log n) each, by bisection, and those whose load has risen only once they would be among the first. The sort
key must not change as time passes. For prefill nodes it is not the seconds queued, but the time at which the queue will be empty
(PrefillLoad.free_s).

Nodes of one `kind` have the same order for every request. So the k best nodes are among the k least loaded of each kind, whatever a
request costs on each kind.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")
FEW = 8  # up to this many nodes, all of them are compared instead


class Ranking(Generic[T]):
    """A sequence of nodes whose members do not change. (It inherits from no sequence, because mypyc could not compile that.)

    kind(node): the node's kind, see the module's docstring; it may change together with the load. holders: block hash -> the nodes that
    hold the block, in the order in which they got it; the nodes' prefix caches keep it up to date.
    """

    def __init__(self, nodes: Iterable[T], kind: Callable[[T], Hashable], holders: dict[int, dict[T, None]] | None = None) -> None:
        self.nodes = list(nodes)
        self.kind = kind
        self.holders: dict[int, dict[T, None]] = {} if holders is None else holders
        self.changed: set[T] = set()
        self.place = {node: index for index, node in enumerate(self.nodes)}
        self._orders: dict[Callable[[T], Any], _Order] = {}

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index: Any) -> Any:
        return self.nodes[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self.nodes)

    def __contains__(self, node: object) -> bool:
        return node in self.place

    def index(self, node: T) -> int:
        return self.place[node]

    def least(self, count: int, load: Callable[[T], Any]) -> Sequence[int]:
        """Indices of the `count` least loaded nodes of each kind (the first ones on ties). More nodes may be included."""
        if len(self.nodes) <= max(FEW, count):
            return range(len(self.nodes))
        if self.changed:
            self._update()
        known = self._orders.get(load)
        if known is None:
            known = self._orders[load] = _Order([self.kind(node) for node in self.nodes], [load(node) for node in self.nodes])
        return known.first(count)

    def _update(self) -> None:
        """Move the nodes that have changed."""
        place, kind = self.place, self.kind
        for node in self.changed:
            index = place.get(node)
            if index is not None:
                kind_now = kind(node)
                for load, order in self._orders.items():
                    order.move(index, kind_now, load(node))
        self.changed.clear()

    def holding(self, hash_ids: tuple[int, ...], count: int) -> list[int]:
        """Indices of at most `count` nodes among those that hold the longest part of the prefix."""
        deepest = bisect_left(hash_ids, True, key=lambda block: not self.holders.get(block)) - 1
        found: list[int] = []
        while deepest >= 0 and not found:  # nodes outside this ranking may hold more
            for node in self.holders[hash_ids[deepest]]:
                if node in self.place:
                    found.append(self.place[node])
                    if len(found) == count:
                        break
            deepest -= 1
        return found


Sequence.register(Ranking)


def candidates(nodes: Sequence[T], count: int, load: Callable[[T], Any], hash_ids: tuple[int, ...] = ()) -> Sequence[int]:
    """Indices of the nodes to compare: all nodes of a plain list; the least loaded and the prefix holders of a Ranking."""
    if not isinstance(nodes, Ranking):
        return range(len(nodes))
    least = nodes.least(count, load)
    if not hash_ids or len(least) == len(nodes):
        return least
    return sorted({*least, *nodes.holding(hash_ids, count)})


class _Order:
    """Sorted lists of (load, index), one for each kind.

    A node whose load has risen stays at its old place until a query comes to it, because most of them fall again before that. So a place is
    never behind the node's true one, and the first nodes whose places are their true ones are the least loaded.
    """

    def __init__(self, kinds: list[Hashable], loads: list[Any]) -> None:
        self.kinds, self.told = kinds, loads
        self.loads = [_entry(load, index) for index, load in enumerate(loads)]  # as last told
        self.places = list(self.loads)  # where the node stands in its list
        self.lists: dict[Hashable, list[tuple[Any, ...]]] = {}
        for kind, place in zip(kinds, self.places):
            self.lists.setdefault(kind, []).append(place)
        for nodes in self.lists.values():
            nodes.sort()

    def move(self, index: int, kind: Hashable, load: Any) -> None:
        """The node's kind and load are these now."""
        same = kind == self.kinds[index]
        if same and load == self.told[index]:
            return
        self.told[index] = load
        entry = self.loads[index] = _entry(load, index)
        if not same:
            self.take(index)
            self.kinds[index] = kind
            self.put(index)
        elif entry < self.places[index]:
            self.take(index)
            self.put(index)

    def take(self, index: int) -> None:
        nodes = self.lists[self.kinds[index]]
        del nodes[bisect_left(nodes, self.places[index])]

    def put(self, index: int) -> None:
        place = self.places[index] = self.loads[index]
        insort(self.lists.setdefault(self.kinds[index], []), place)

    def first(self, count: int) -> list[int]:
        found = []
        for nodes in self.lists.values():
            least = 0
            while least < count and least < len(nodes):
                place = nodes[least]
                index: int = place[len(place) - 1]
                if self.loads[index] is place:
                    found.append(index)
                    least += 1
                else:
                    del nodes[least]
                    self.put(index)
        return found


def _entry(load: Any, index: int) -> tuple[Any, ...]:
    """Flat, because tuples in tuples take several times as long to compare."""
    return (*load, index) if isinstance(load, tuple) else (load, index)

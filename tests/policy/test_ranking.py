"""The index of nodes finds the same nodes as a comparison of all of them, whatever changed in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.routing.base import RequestView
from abkt.policy.routing.least_loaded import LeastLoaded, backlog, fullness
from abkt.policy.routing.load_aware import LoadAwareRouting
from abkt.policy.routing.min_ttft import MinTTFT, first_token_s
from abkt.policy.routing.ranking import Ranking, candidates

REQUEST = RequestView(0, isl=1000, osl=100, arrival_s=0.0)
HASHED = RequestView(0, isl=1000, osl=100, arrival_s=0.0, hash_ids=(7, 8, 9, 10))


@dataclass(eq=False)
class Prefill:
    """Its queue will be empty at free_s; now is 10 s."""

    free_s: float = 0.0
    speed: int = 1
    held: int = 0

    @property
    def queued_s(self) -> float:
        return max(0.0, self.free_s - 10.0)

    def prefill_s(self, isl: int, cached: int = 0) -> float:
        return (isl - cached) / 1000 / self.speed

    def cached_tokens(self, hash_ids: tuple[int, ...]) -> int:
        return 250 * self.held


@dataclass(eq=False)
class Decode:
    kv_used: float = 0.0
    active: int = 0
    tpot_s: float = 0.0
    wait: float = 0.0
    kind: int = 0

    def wait_s(self, isl: int) -> float:
        return self.wait * (1 + isl / 1000)


def speed(node: Prefill) -> int:
    return node.speed


def kind(node: Decode) -> int:
    return node.kind


moments = st.sampled_from([3.0, 9.0, 10.5, 11.0, 11.5, 13.0])
prefills = st.lists(st.builds(Prefill, moments, st.sampled_from([1, 2, 4])), min_size=1, max_size=25)
decodes = st.lists(
    st.builds(Decode, st.sampled_from([0.0, 0.3, 0.6]), st.integers(0, 3), st.sampled_from([0.0, 0.06, 0.2])), min_size=1, max_size=25
)
changes = st.lists(st.tuples(st.integers(0, 24), moments, st.sampled_from([1, 2])), max_size=30)


def ranked(prefill: list[Prefill], decode: list[Decode]) -> tuple[Ranking, Ranking]:
    return Ranking(prefill, speed), Ranking(decode, kind)


@given(prefills, changes, st.integers(1, 4))
def test_the_least_loaded_of_each_kind_after_any_changes(nodes, changes, count) -> None:
    ranking = Ranking(nodes, speed)
    for where, free_s, now_speed in [(0, nodes[0].free_s, nodes[0].speed), *changes]:
        node = nodes[where % len(nodes)]
        node.free_s, node.speed = free_s, now_speed
        ranking.changed.add(node)
        least = ranking.least(count, backlog)
        for kind in {node.speed for node in nodes}:
            every = sorted((node.free_s, i) for i, node in enumerate(nodes) if node.speed == kind)
            found = sorted((nodes[i].free_s, i) for i in least if nodes[i].speed == kind)
            assert found[:count] == every[:count]


@given(prefills, decodes, changes)
def test_routing_by_the_index_is_routing_by_brute_force(prefill, decode, changes) -> None:
    by_index = ranked(prefill, decode)
    quote_s: Callable[[int, int], float] = lambda p, d: 0.0  # noqa: E731
    policies = (LeastLoaded(), MinTTFT(1), LoadAwareRouting(top_k=1), LoadAwareRouting(top_k=3))
    for where, free_s, now_speed in [(0, 9.0, 1), *changes]:
        node, other = prefill[where % len(prefill)], decode[where % len(decode)]
        node.free_s, node.speed, other.kv_used = free_s, now_speed, free_s / 20
        by_index[0].changed.add(node)
        by_index[1].changed.add(other)
        for policy in policies:
            p, d = policy.decide(10.0, REQUEST, *by_index, quote_s)
            i, j = policy.decide(10.0, REQUEST, prefill, decode, quote_s)
            source = Prefill.queued_s.fget if isinstance(policy, LeastLoaded) else lambda node: first_token_s(node, REQUEST)
            assert source(prefill[p]) == source(prefill[i])
            assert (decode[d].tpot_s, decode[d].kv_used) == (decode[j].tpot_s, decode[j].kv_used) or isinstance(policy, LeastLoaded)
            assert fullness(decode[d]) == fullness(decode[j]) or not isinstance(policy, LeastLoaded)


@given(prefills, decodes, st.integers(0, 10**6), st.data())
def test_load_aware_in_a_large_cluster_is_exact_where_top_k_covers_it(prefill, decode, seed, data) -> None:
    """Also with waits, which the index orders by the wait of an empty prompt."""
    for node in decode:
        node.wait = data.draw(st.sampled_from([0.0, 0.0, 0.4, 2.0]))

    def quote_s(p: int, d: int) -> float:
        return ((p * 31 + d * 17 + seed) % 7) * 0.1

    def cost(p: int, d: int) -> float:
        late = max(0.0, decode[d].tpot_s / 0.05 - 1)
        return first_token_s(prefill[p], REQUEST) + quote_s(p, d) + decode[d].wait_s(1000) + late

    least = min(cost(p, d) for p in range(len(prefill)) for d in range(len(decode)))
    assert cost(*LoadAwareRouting(top_k=25).decide(10.0, REQUEST, *ranked(prefill, decode), quote_s)) == pytest.approx(least)


def test_nodes_that_hold_the_prefix_are_compared_whatever_their_load() -> None:
    nodes = [Prefill(20.0 + i) for i in range(20)]
    holders: dict[int, dict[Prefill, None]] = {7: {nodes[17]: None, nodes[18]: None}, 8: {nodes[18]: None}}
    ranking = Ranking(nodes, speed, holders)
    nodes[17].held, nodes[18].held = 1, 2
    assert ranking.holding(HASHED.hash_ids, 4) == [18]
    assert ranking.holding((7, 99), 4) == [17, 18]
    assert ranking.holding((99, 100), 4) == []
    assert candidates(ranking, 2, backlog, HASHED.hash_ids) == [0, 1, 18]
    assert MinTTFT(2).decide(10.0, HASHED, ranking, [Decode()], lambda p, d: 0.0)[0] == 0  # 18 s later, half a second less to do
    nodes[18].free_s = 20.2
    ranking.changed.add(nodes[18])
    assert MinTTFT(2).decide(10.0, HASHED, ranking, [Decode()], lambda p, d: 0.0)[0] == 18


def test_a_node_that_left_the_ranking_may_still_change() -> None:
    nodes = [Prefill(20.0 + i) for i in range(12)]
    ranking = Ranking(nodes[1:], speed)
    ranking.least(1, backlog)
    ranking.changed.add(nodes[0])
    assert list(ranking.least(1, backlog)) == [0]

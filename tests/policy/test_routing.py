"""Properties of every routing policy, and each policy's rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.routing.base import RequestView
from abkt.policy.routing.least_loaded import LeastLoaded
from abkt.policy.routing.load_aware import LoadAwareRouting
from abkt.policy.routing.min_ttft import MinTTFT
from abkt.policy.routing.power_of_two import PowerOfTwo
from abkt.policy.routing.prefix_aware import PrefixAware
from abkt.policy.routing.random import RandomRouting
from abkt.policy.routing.round_robin import RoundRobin

POLICIES: dict[str, Callable] = {
    "random": RandomRouting,
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "power_of_two": PowerOfTwo,
    "prefix_aware": PrefixAware,
    "min_ttft": MinTTFT,
    "load_aware": LoadAwareRouting,
}
REQUEST = RequestView(0, isl=1000, osl=100, arrival_s=0.0)
HASHED = RequestView(0, isl=1000, osl=100, arrival_s=0.0, hash_ids=(7, 8, 9, 10))  # 250 tokens each


@dataclass
class Prefill:
    queued_s: float = 0.0
    slowness: float = 1e-5
    held: int = 0  # of HASHED's blocks

    @property
    def free_s(self) -> float:
        return self.queued_s

    def prefill_s(self, isl: int, cached: int = 0) -> float:
        return self.slowness * (isl - cached)

    def cached_tokens(self, hash_ids: tuple[int, ...]) -> int:
        return 250 * self.held


@dataclass
class Decode:
    kv_used: float = 0.0
    active: int = 0
    tpot_s: float = 0.0
    wait: float = 0.0

    def wait_s(self, isl: int) -> float:
        return self.wait


# Few different values, so that ties are common.
prefills = st.lists(
    st.builds(Prefill, st.sampled_from([0.0, 0.1, 0.5, 2.0]), st.sampled_from([1e-5, 3e-4]), st.integers(0, 4)), min_size=1, max_size=6
)
decodes = st.lists(
    st.builds(
        Decode,
        st.sampled_from([0.0, 0.3, 0.95]),
        st.integers(0, 3),
        st.sampled_from([0.0, 0.04, 0.06, 0.2]),
        st.sampled_from([0.0, 0.0, 0.7]),
    ),
    min_size=1,
    max_size=6,
)
quotes = st.integers(0, 10**6).map(lambda seed: lambda p, d: ((p * 31 + d * 17 + seed) % 7) * 0.1)


@pytest.mark.parametrize("name", POLICIES)
@given(prefill=prefills, decode=decodes, quote_s=quotes, times=st.integers(1, 5), request_=st.sampled_from([REQUEST, HASHED]))
def test_valid_nodes_and_the_same_answer_for_the_same_calls(name, prefill, decode, quote_s, times, request_) -> None:
    one, other = POLICIES[name](), POLICIES[name]()
    for _ in range(times):
        p, d = one.decide(0.0, request_, prefill, decode, quote_s)
        assert 0 <= p < len(prefill)
        assert 0 <= d < len(decode)
        assert (p, d) == other.decide(0.0, request_, prefill, decode, quote_s)


def cost(p: int, d: int, prefill, decode, quote_s, slo_s: float = 0.05, tpot_penalty_s: float = 1.0) -> float:
    late = max(0.0, decode[d].tpot_s / slo_s - 1)
    return prefill[p].queued_s + prefill[p].prefill_s(1000) + quote_s(p, d) + decode[d].wait + tpot_penalty_s * late


@given(prefills, decodes, quotes)
def test_load_aware_equals_brute_force_on_a_small_cluster(prefill, decode, quote_s) -> None:
    chosen = LoadAwareRouting(top_k=6).decide(0.0, REQUEST, prefill, decode, quote_s)
    costs = {(p, d): cost(p, d, prefill, decode, quote_s) for p in range(len(prefill)) for d in range(len(decode))}
    assert costs[chosen] == pytest.approx(min(costs.values()))


@given(prefills, decodes, quotes, st.integers(1, 3))
def test_load_aware_with_top_k_equals_brute_force_among_the_best_of_each_side(prefill, decode, quote_s, top_k) -> None:
    asked: list[tuple[int, int]] = []

    def counted(p: int, d: int) -> float:
        asked.append((p, d))
        return quote_s(p, d)

    p, d = LoadAwareRouting(top_k=top_k).decide(0.0, REQUEST, prefill, decode, counted)
    assert len(asked) == len(set(asked)) <= top_k**2
    sources = sorted(range(len(prefill)), key=lambda i: (prefill[i].queued_s + prefill[i].prefill_s(1000), i))[:top_k]
    targets = sorted(range(len(decode)), key=lambda i: (cost(0, i, [Prefill()], decode, lambda p, d: 0.0), decode[i].kv_used, i))[:top_k]
    best = min(cost(i, j, prefill, decode, quote_s) for i in sources for j in targets)
    assert p in sources
    assert d in targets
    assert cost(p, d, prefill, decode, quote_s) == pytest.approx(best)


def test_load_aware_routes_as_worked_out_by_hand() -> None:
    prefill = [Prefill(0.3), Prefill(0.0)]
    decode = [Decode(), Decode(tpot_s=0.1)]
    policy = LoadAwareRouting(tpot_slo_s=0.05, tpot_penalty_s=0.5)
    assert policy.decide(0.0, REQUEST, prefill, decode, lambda p, d: 0.0) == (1, 0)
    assert policy.decide(0.0, REQUEST, prefill, decode, lambda p, d: 0.4 if p == 1 else 0.0) == (0, 0)  # queueing is cheaper than sending
    assert policy.decide(0.0, REQUEST, prefill, decode, lambda p, d: 0.6 if d == 0 else 0.0) == (1, 1)  # twice the SLO costs 0.5 s
    assert policy.decide(0.0, REQUEST, prefill, [Decode(kv_used=0.4), Decode(kv_used=0.3)], lambda p, d: 0.2) == (1, 1)  # a tie


@pytest.mark.parametrize(("p", "d"), [(4, 4), (4, 2), (2, 4), (3, 5), (1, 1), (6, 4)])
def test_round_robin_uses_every_pair_once_and_each_side_in_turn(p, d) -> None:
    policy = RoundRobin()
    pairs = [policy.decide(0.0, REQUEST, [Prefill()] * p, [Decode()] * d, lambda p, d: 0.0) for _ in range(p * d)]
    assert len(set(pairs)) == p * d
    assert [source for source, _ in pairs] == [i % p for i in range(p * d)]
    assert set(Counter(target for _, target in pairs).values()) == {p}


def test_random_is_uniform_and_follows_its_seed() -> None:
    def drawn(seed: int) -> list[tuple[int, int]]:
        policy = RandomRouting(seed)
        return [policy.decide(0.0, REQUEST, [Prefill()] * 2, [Decode()] * 3, lambda p, d: 0.0) for _ in range(3000)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(Counter(drawn(1))) == 6
    assert all(400 < count < 600 for count in Counter(drawn(1)).values())


@given(prefills, decodes)
def test_least_loaded_by_its_definition(prefill, decode) -> None:
    p, d = LeastLoaded().decide(0.0, REQUEST, prefill, decode, lambda p, d: 0.0)
    assert prefill[p].queued_s == min(node.queued_s for node in prefill)
    assert (decode[d].kv_used, decode[d].active) == min((node.kv_used, node.active) for node in decode)


@given(prefills, decodes)
def test_min_ttft_by_its_definition(prefill, decode) -> None:
    p, d = MinTTFT().decide(0.0, HASHED, prefill, decode, lambda p, d: 0.0)
    ttfts = [node.queued_s + node.slowness * (1000 - 250 * node.held) for node in prefill]
    assert ttfts[p] == min(ttfts)
    assert decode[d].tpot_s == min(node.tpot_s for node in decode)


def test_prefix_aware_routes_as_worked_out_by_hand() -> None:
    decode = [Decode(kv_used=0.5), Decode()]
    policy = PrefixAware(cache_threshold=0.5, balance_threshold_s=1.0)

    def chosen(*prefill: Prefill, request: RequestView = HASHED) -> tuple[int, int]:
        return policy.decide(0.0, request, prefill, decode, lambda p, d: 0.0)

    assert chosen(Prefill(0.0), Prefill(0.9, held=3), Prefill(0.0, held=2)) == (1, 1)  # the longest prefix, if its queue is not much longer
    assert chosen(Prefill(0.0), Prefill(1.1, held=3), Prefill(0.0, held=2)) == (
        0,
        1,
    )  # too busy: the shortest queue instead
    assert chosen(Prefill(0.1), Prefill(0.2, held=1)) == (0, 1)  # a quarter of the prompt is below the threshold of a half
    assert chosen(Prefill(0.1), Prefill(0.2, held=3), request=REQUEST) == (0, 1)  # its hashes are unknown


def test_power_of_two_takes_the_less_loaded_of_two() -> None:
    prefill = [Prefill(float(i)) for i in range(10)]
    decode = [Decode(kv_used=i / 10) for i in range(10)]
    policy = PowerOfTwo(5)
    chosen = [policy.decide(0.0, REQUEST, prefill, decode, lambda p, d: 0.0) for _ in range(4500)]
    for side in (0, 1):
        counts = Counter(pair[side] for pair in chosen)
        assert counts[9] == 0  # of two different nodes one is less loaded
        for node in range(9):  # node i is chosen with one of the 9 - i above it, of 45 pairs
            assert counts[node] == pytest.approx(100 * (9 - node), abs=130)


@pytest.mark.parametrize("fields", [{"tpot_slo_s": 0.0}, {"tpot_penalty_s": -1.0}, {"top_k": 0}])
def test_impossible_fields_are_refused(fields) -> None:
    with pytest.raises(ValueError, match=r"is .*; it must be"):
        LoadAwareRouting(**fields)


@pytest.mark.parametrize(
    ("policy", "fields"), [(PrefixAware, {"cache_threshold": 0.0}), (PrefixAware, {"balance_threshold_s": -1.0}), (MinTTFT, {"top_k": 0})]
)
def test_others_refused(policy, fields) -> None:
    with pytest.raises(ValueError, match="must"):
        policy(**fields)

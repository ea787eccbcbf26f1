"""The prefix cache holds prefixes of prompts and keeps the blocks in use, and its memory adds up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.bitrate.fixed import Fixed, Raw
from abkt.policy.routing.prefix_aware import PrefixAware
from abkt.policy.routing.round_robin import RoundRobin
from abkt.records import SLO
from sim.cluster import Simulation
from sim.node.memory import KvMemory
from sim.node.prefix import PrefixCache
from sim.specs import ClusterSpec, EngineSpec, NodeSpec
from sim.workload.requests import Request

SLOS = SLO(0.5, 0.02)
chains = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.sampled_from([0.0, 0.0, 0.1])), min_size=1, max_size=40)


def held(cache: PrefixCache, chain: tuple[int, ...], allowed: float = 1.0) -> int:
    return cache.match(chain, allowed)


@settings(max_examples=200)
@given(chains, st.data())
def test_blocks_in_use_stay_and_memory_adds_up(chains, data) -> None:
    """Prompts of three kinds come and go. Each has some whole blocks and a private one. Memory holds 14 blocks; a hash stands for 2."""
    holders: dict[int, dict[str, None]] = {}
    cache = PrefixCache(32, 16, holders)
    cache.owner = "node"
    memory = KvMemory(16 * 14, 16, cache)
    live: list[tuple[tuple[int, ...], int]] = []  # (pinned hashes, private blocks)
    for kind, length, distortion in chains:
        chain = tuple(100 * kind + i for i in range(length))
        found = cache.match(chain, 0.0)
        assert cache.worst(chain[:found]) == 0.0
        memory.pin(chain[:found])
        private = 2 * (length - found) + 1
        while not memory.can_reserve(private):
            if not live:
                break
            pinned, blocks = live.pop(data.draw(st.integers(0, len(live) - 1)))
            memory.release(blocks)
            memory.unpin(pinned)
        if not memory.can_reserve(private):
            memory.unpin(chain[:found])
            continue
        memory.reserve(private)
        private -= memory.share(chain, found, distortion)
        assert private == 1
        live.append((chain, private))
        in_use = {block for pinned, _ in live for block in pinned}
        assert memory.used == 2 * len(in_use) + sum(blocks for _, blocks in live) <= memory.blocks
        assert 2 * len(cache) + sum(blocks for _, blocks in live) <= memory.blocks  # unused blocks fit beside those in use
        assert all(held(cache, (block,)) for block in in_use)
        for each in (1, 2, 3):  # the held blocks of a kind are its prefix
            whole = tuple(100 * each + i for i in range(6))
            assert sum(held(cache, (block,)) for block in whole) == held(cache, whole)
        assert {block for block in holders if holders[block]} == {b for b in range(100, 406) if held(cache, (b,))}
    for pinned, blocks in live:
        memory.release(blocks)
        memory.unpin(pinned)
    assert memory.used == 0
    cache.clear()
    assert not holders
    assert len(cache) == 0


def test_the_least_recently_used_block_is_evicted_first_and_the_end_of_a_prefix_before_its_start() -> None:
    cache = PrefixCache(16, 16, {})
    memory = KvMemory(16 * 4, 16, cache)
    for chain in ((1, 2), (3, 4)):
        memory.reserve(2)
        memory.share(chain, 0, 0.0)
        memory.unpin(chain)
    memory.pin((1,))
    memory.unpin((1,))
    memory.reserve(1)
    assert (held(cache, (1, 2)), held(cache, (3, 4))) == (1, 2)  # 2 is the least recently used
    memory.reserve(1)
    assert (held(cache, (1, 2)), held(cache, (3, 4))) == (1, 1)  # 4 before 3


def test_a_lossy_block_is_used_only_if_allowed_until_a_lossless_one_replaces_it() -> None:
    cache = PrefixCache(16, 16, {})
    memory = KvMemory(16 * 8, 16, cache)
    memory.reserve(2)
    memory.share((1, 2), 0, 0.05)
    assert (cache.match((1, 2)), cache.match((1, 2), 0.05)) == (0, 2)
    assert cache.distortion((1, 2)) == pytest.approx(0.05)
    memory.reserve(2)
    memory.share((1, 2), 0, 0.0)  # another request has computed them again
    assert cache.match((1, 2)) == 2
    assert memory.used == 2


def test_a_hash_stands_for_whole_blocks() -> None:
    with pytest.raises(ValueError, match="hash_tokens is 100; it must be a multiple of the block of 16"):
        PrefixCache(100, 16, {})


def cluster(profile, prefill: int = 1, kv: int = 10_000) -> ClusterSpec:
    nic = Capacity.constant(1e9)
    nodes = [tuple(NodeSpec(f"{role}{i}", profile, kv, nic, 3.6) for i in range(n)) for role, n in (("p", prefill), ("d", 1))]
    return ClusterSpec(nodes[0], nodes[1], engine=EngineSpec(hash_tokens=64))


def test_a_cached_prefix_is_not_computed_again(profile) -> None:
    """150 tokens hold two whole blocks of 64. The second prompt shares the first block, the third prompt both."""
    rows = [(0.0, 150, (1, 2, 3)), (5.0, 150, (1, 8, 9)), (10.0, 128, (1, 2))]
    requests = [Request(i, at, isl, 3, ids) for i, (at, isl, ids) in enumerate(rows)]
    records = Simulation(cluster(profile), requests, Raw, RoundRobin(), SLOS).run().requests

    def prompt_s(tokens: int, cached: int) -> float:
        return 0.00217 + (tokens - cached) * 0.000313 + (tokens**2 - cached**2) * 1.7e-7

    assert [r.cached_tokens for r in records] == [0, 64, 64]  # of 128 tokens at least one is computed, so one whole block is
    assert [r.prefill_busy_s for r in records] == pytest.approx([prompt_s(150, 0), prompt_s(150, 64), prompt_s(128, 64)])


def test_a_prefix_that_the_decode_node_holds_is_not_sent_again(profile) -> None:
    """The second turn sends only the tokens after the whole blocks of 64 tokens that the first turn left there."""
    ids = tuple(range(10))
    requests = [Request(0, 0.0, 150, 3, ids[:3]), Request(1, 5.0, 400, 3, ids[:7])]
    simulation = Simulation(cluster(profile), requests, Raw, RoundRobin(), SLOS, debug=True)
    simulation.run()
    assert [t.wire_bytes for t in simulation.transfers] == [64 * 150, 64 * (400 - 128)]
    target = simulation.nodes.all[1].memory
    assert target.cache.match(ids) == 6  # 384 of 400 tokens
    assert target.used == 0


def test_lossy_blocks_are_sent_again_unless_they_are_allowed(profile) -> None:
    requests = [Request(0, 0.0, 128, 3, (1, 2)), Request(1, 5.0, 128, 3, (1, 2)), Request(2, 10.0, 256, 3, (1, 2, 3, 4))]

    def run(allowed: float) -> Simulation:
        of = replace(cluster(profile), engine=EngineSpec(hash_tokens=64, reuse_distortion=allowed))
        simulation = Simulation(of, requests, lambda: Fixed(4), RoundRobin(), SLOS, debug=True)
        simulation.run()
        return simulation

    strict, lenient = run(0.0), run(1.0)
    assert [t.raw_bytes for t in strict.transfers] == [64 * 128, 64 * 128, 64 * 256]
    assert [t.raw_bytes for t in lenient.transfers] == [64 * 128, 64 * 64, 64 * 128]  # of what is sent
    first, second, third = lenient.records
    sent = lenient.transfers[2].distortion_start
    assert third.distortion_start == pytest.approx((first.distortion_start + sent) / 2)
    assert second.distortion_start > 0
    assert strict.records[2].distortion_start == strict.transfers[2].distortion_start


def test_prefix_aware_routing_hits_where_round_robin_misses(profile) -> None:
    """Two conversations run on two nodes. Turns that alternate between nodes miss. By prefix, all but each first turn hit."""
    requests = [Request(i, 2.0 * i, 64 * (i // 3 + 1) + 5, 3, tuple(1000 * (i % 3) + b for b in range(i // 3 + 2))) for i in range(18)]
    of = cluster(profile, prefill=2)

    def cached(routing) -> int:
        return sum(r.cached_tokens for r in Simulation(of, requests, Raw, routing, SLOS).run().requests)

    every = sum(64 * (i // 3) for i in range(18))
    assert cached(PrefixAware()) == every > cached(RoundRobin())


def test_a_run_with_a_small_cache_releases_all_its_memory(profile) -> None:
    requests = [Request(i, 0.01 * i, 40 + 31 * i % 250, 1 + i % 5, tuple(100 * (i % 4) + b for b in range(5))) for i in range(50)]
    tight = replace(cluster(profile, 2, kv=400))
    simulation = Simulation(tight, requests, Raw, PrefixAware(), SLOS)
    simulation.run()
    assert [node.memory.used for node in simulation.nodes.all] == [0, 0, 0]

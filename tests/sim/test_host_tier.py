"""A host-memory tier: prefixes that left the GPU's cache are copied back instead of computed again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from abkt.capacity import Capacity
from abkt.policy.bitrate.fixed import Raw
from abkt.policy.roles.colocated import Colocated
from abkt.policy.routing.round_robin import RoundRobin
from abkt.records import SLO
from sim.cluster import Simulation
from sim.node.prefix import PrefixCache
from sim.specs import ClusterSpec, EngineSpec, NodeSpec
from sim.workload.requests import Request

SLOS = SLO(0.5, 0.02)


def run(profile, host_tokens: int, rate: float = 64e6):
    """Prompts of 256 tokens in four blocks; the node holds 20 blocks of 16 tokens, so the second prompt drives the first one out."""
    node = NodeSpec("one", profile, 320, Capacity.constant(1e9))
    engine = EngineSpec(hash_tokens=64, host_tokens=host_tokens, host_bytes_per_s=rate)
    rows = [(0.0, (1, 2, 3, 4)), (5.0, (5, 6, 7, 8)), (10.0, (1, 2, 3, 4))]
    requests = [Request(i, at, 256, 3, ids) for i, (at, ids) in enumerate(rows)]
    simulation = Simulation(ClusterSpec((), (node,), engine=engine), requests, Raw, RoundRobin(), SLOS, roles=Colocated(), debug=True)
    return simulation.run().requests


def test_a_prefix_comes_back_from_the_host_at_the_rate_of_the_copy(profile) -> None:
    """Without the tier at most what is left on the GPU is reused, with it three of four blocks: one token is always computed."""
    without, with_host, slow = run(profile, 0), run(profile, 1024), run(profile, 1024, 64e3)
    assert without[2].cached_tokens < 192
    assert with_host[2].cached_tokens == slow[2].cached_tokens == 192
    assert with_host[2].ttft_s < without[2].ttft_s
    copied = 192 - without[2].cached_tokens
    assert slow[2].ttft_s - with_host[2].ttft_s == pytest.approx(copied * 64 / 64e3 - copied * 64 / 64e6)  # 64 bytes of KV a token
    assert [r.cached_tokens for r in with_host[:2]] == [0, 0]


def test_a_small_tier_keeps_what_was_used_last() -> None:
    cache = PrefixCache(16, 16, {}, host_tokens=32)
    cache.add((1, 2, 3), 0.0)
    cache.unpin((1, 2, 3))
    cache.shrink_to(0)  # the end of a prefix leaves first: 3, 2, 1, and the tier holds two
    assert [cache.match_host((block,), 0) for block in (1, 2, 3)] == [1, 1, 0]
    cache.clear()  # the node died
    assert cache.match_host((1,), 0) == 0


def test_lossy_blocks_come_back_lossy() -> None:
    cache = PrefixCache(16, 16, {}, host_tokens=64)
    cache.add((1,), 0.05)
    cache.unpin((1,))
    cache.shrink_to(0)
    assert (cache.match_host((1,), 0, 0.01), cache.match_host((1,), 0, 0.05)) == (0, 1)
    assert cache.take_from_host((1,)) == 0.05


def test_a_tier_without_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="host_bytes_per_s"):
        replace(EngineSpec(), host_bytes_per_s=0.0)

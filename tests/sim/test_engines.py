"""Skipping and stepping through iterations give the same records with any engine: chunked prefill, growing memory, prefix caches, piecewise
costs, nodes that both prefill and decode."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.admission.ladder import Ladder
from abkt.policy.admission.reject_late import RejectLate
from abkt.policy.admission.reserve import Reserve
from abkt.policy.bitrate.fixed import Fixed, Raw
from abkt.policy.roles.arrow import Arrow
from abkt.policy.roles.colocated import Colocated
from abkt.policy.roles.conditional import Conditional
from abkt.policy.roles.load_aware import LoadAwareRoles
from abkt.policy.roles.static import Static
from abkt.policy.routing.least_loaded import LeastLoaded
from abkt.policy.routing.load_aware import LoadAwareRouting
from abkt.policy.routing.min_ttft import MinTTFT
from abkt.policy.routing.round_robin import RoundRobin
from abkt.records import SLO, RequestRecord, TransferRecord
from sim.cluster import Simulation
from sim.faults import Death, FaultPlan, Straggler
from sim.node.node import Node
from sim.specs import ClusterSpec, EngineSpec, NodeSpec
from sim.workload.requests import Request
from tests.sim.conftest import FITS, exact
from tests.sim.stepping import SteppingNode
from tests.sim.test_decode import assert_same

SLOS = SLO(ttft_s=0.4, tpot_s=0.02)
PIECES = exact({"1": 0.00311, "batch": 0.000271, "context": 1.37e-5, "context>301": 0.9e-5, "context>777": -0.4e-5}, {}, {"context": 2000})

NAMES, SPANS = st.sampled_from(["p0", "d0"]), st.sampled_from([0.1, 0.7, math.inf])
requests = st.lists(st.tuples(st.floats(0, 1.5), st.integers(1, 300), st.integers(1, 60), st.integers(0, 3)), min_size=1, max_size=25).map(
    lambda rows: [Request(i, at, isl, osl, prefix(isl, kind)) for i, (at, isl, osl, kind) in enumerate(sorted(rows))]
)
engines = st.builds(
    EngineSpec,
    max_batch=st.integers(1, 6),
    prefill_tokens=st.sampled_from([0, 64, 512]),
    grow_tokens=st.sampled_from([0, 0, 16, 40]),
    hash_tokens=st.sampled_from([0, 32]),
    buckets=st.sampled_from([(), (1, 2, 4)]),
) | st.builds(
    EngineSpec,
    max_batch=st.integers(1, 6),
    prefill_tokens=st.sampled_from([7, 50]),
    chunked=st.just(True),
    grow_tokens=st.sampled_from([0, 16]),
)
roles = st.sampled_from(
    [
        Static,
        Colocated,
        lambda: Conditional(local_tokens=100, queue_s=0.3),
        lambda: Arrow(0.17, 0.4, 0.02),
        lambda: LoadAwareRoles(0.13, 0.4, 0.02, lend_periods=1, payback_s=5.0),
    ]
)
admissions = st.sampled_from([lambda: None, Reserve, lambda: Reserve(0.5), RejectLate, Ladder])
routings = st.sampled_from([RoundRobin, LeastLoaded, MinTTFT, lambda: LoadAwareRouting(SLOS.tpot_s)])


moments = st.floats(0, 2)
faults = st.just(FaultPlan()) | st.builds(
    FaultPlan,
    st.lists(st.builds(lambda node, at_s, for_s: Death(node, at_s, at_s + for_s), NAMES, moments, SPANS), max_size=2).map(tuple),
    st.lists(st.builds(lambda node, at_s, for_s: Straggler(node, at_s, at_s + for_s, 2.5), NAMES, moments, SPANS), max_size=2).map(tuple),
    st.sampled_from([0, 2]),
    st.sampled_from([math.inf, 0.5]),
)


def prefix(isl: int, kind: int) -> tuple[int, ...]:
    """Hashes of blocks of 32 tokens. Prompts of the same kind share their first three hashes; prompts of kind 0 have no hashes."""
    if kind == 0:
        return ()
    blocks = -(-isl // 32)
    return tuple(1000 * kind + i if i < 3 else 10**6 + 1000 * isl + i for i in range(blocks))


def cluster(profile, engine: EngineSpec, sizes: tuple[int, int], kv: int, rate: float = 3e5, **more) -> ClusterSpec:
    nic = Capacity.constant(rate)
    nodes = [tuple(NodeSpec(f"{role}{i}", profile, kv, nic, 3.6) for i in range(n)) for role, n in zip(("p", "d"), sizes)]
    return ClusterSpec(nodes[0], nodes[1], engine=engine, usd_per_gb=0.1, **more)


@settings(max_examples=120)
@given(
    requests=requests,
    engine=engines,
    roles=roles,
    admission=admissions,
    routing=routings,
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kv=st.sampled_from([416, 900, 100_000]),
    bitrate=st.sampled_from([Raw, lambda: Fixed(4)]),
    pieces=st.booleans(),
    faults=faults,
)
def test_skipping_equals_stepping_with_any_engine(
    profile, requests, engine, roles, admission, routing, sizes, kv, bitrate, pieces, faults
) -> None:
    if pieces:
        profile = replace(profile, fits={**FITS, "decode": PIECES})
    of = cluster(profile, engine, sizes, kv)

    def result(node: type[Node]):
        more = {"roles": roles(), "admission": admission(), "faults": faults, "debug": True}
        return Simulation(of, requests, bitrate, routing(), SLOS, node=node, **more).run()

    leaping, stepping = result(Node), result(SteppingNode)
    assert_same(leaping.requests, stepping.requests, RequestRecord)
    by_id = [sorted(result.transfers, key=lambda t: t.request_id) for result in (leaping, stepping)]
    assert_same(*by_id, TransferRecord)
    assert all(r.outcome == "completed" or r.reason for r in leaping.requests)

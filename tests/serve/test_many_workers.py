"""Real clusters of several workers. Workers are killed, frozen, cut off, start, leave and change roles. The answers must not change."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from abkt.records import RequestRecord
from abkt.serve import LocalCluster, LocalClusterSpec, PlannedRoleChange
from abkt.serve.engine.generation import Sampling
from abkt.serve.frontend.prompt import Prompt
from tests.serve.black_hole import BlackHole
from tests.serve.test_engine import generate
from tests.serve.test_real_cluster import INT8, LINK, RAW, SLOW_SLO, UNLIMITED

pytestmark = pytest.mark.slow
NIXL = pytest.mark.skipif(find_spec("nixl") is None, reason="NIXL is not installed")
LOADED = {"_target_": "abkt.policy.routing.load_aware.LoadAwareRouting", "tpot_slo_s": 0.05}


def prompts(count: int, gap_s: float = 0.25, osl: int = 24) -> list[Prompt]:
    return [Prompt(i, gap_s * i, tuple((11 * i + 3 * j) % 2048 for j in range(40 + 37 * (i % 7))), osl) for i in range(count)]


@pytest.fixture
def cluster(tiny_model: Path, tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(LocalClusterSpec(tiny_model, prefill=2, decode=2, pool_tokens=2048, max_batch=4), tmp_path) as running:
        yield running


def expected(cluster: LocalCluster, given: list[Prompt]) -> dict[int, list[int]]:
    return {p.request_id: generate(cluster.spec.model_folder, list(p.tokens), p.osl) for p in given}


def test_every_pair_of_workers_serves_the_tokens_of_a_single_process(cluster: LocalCluster) -> None:
    given = prompts(12, gap_s=0.05)
    run = cluster.run(given, RAW, UNLIMITED, SLOW_SLO)
    assert run.outputs == expected(cluster, given)
    assert {(r.prefill_node, r.decode_node) for r in run.requests} == {(p, d) for p in ("p0", "p1") for d in ("d0", "d1")}
    assert {(t.source, t.destination) for t in run.transfers} == {(r.prefill_node, r.decode_node) for r in run.requests}
    closed = cluster.run(given, INT8, LINK, SLOW_SLO, routing=LOADED, concurrency=3)
    assert [r.outcome for r in closed.requests] == ["completed"] * 12
    for r in closed.requests:
        at_s = [o for o in closed.requests if o.arrival_s <= r.arrival_s < o.finish_s]
        assert len(at_s) <= 3


@pytest.mark.parametrize("victim", ["p0", "d0"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_other_workers_serve_the_requests_of_a_lost_one(cluster: LocalCluster, victim: str, how: signal.Signals) -> None:
    given = prompts(24)
    seen: list[RequestRecord] = []

    def lose(record: RequestRecord) -> None:
        seen.append(record)
        if len(seen) == 6:
            os.kill(cluster.workers.states[victim].process.pid, how)

    run = cluster.run(given, RAW, UNLIMITED, SLOW_SLO, keep=lose)
    assert run.outputs == expected(cluster, given)
    assert victim not in cluster.workers.states
    after = cluster.run(prompts(4, 0.0), RAW, UNLIMITED, SLOW_SLO)
    assert victim not in {name for r in after.requests for name in (r.prefill_node, r.decode_node)}


def test_a_link_that_delivers_nothing_is_avoided(cluster: LocalCluster) -> None:
    """From the middle of the run on, the link from p0 and p1 to d0 accepts every byte and delivers none."""
    given = prompts(16)
    worker = cluster.workers.states["d0"]
    with BlackHole(worker.address) as hole:
        worker.address = hole.address

        def swallow(record: RequestRecord) -> None:
            hole.open = False

        run = cluster.run(given, INT8, UNLIMITED, SLOW_SLO, keep=swallow)
    assert [r.outcome for r in run.requests] == ["completed"] * 16
    moved = [r for r in run.requests if r.reason]
    assert moved
    assert all("silent" in r.reason or "moved" in r.reason for r in moved)
    assert {r.decode_node for r in moved} == {"d1"}


def test_workers_may_start_leave_and_change_their_role_while_requests_are_served(cluster: LocalCluster) -> None:
    given = prompts(60, gap_s=0.4)
    changes = [
        PlannedRoleChange(0.5, "d9", "decode"),
        PlannedRoleChange(2.0, "d1", "prefill"),
        PlannedRoleChange(12.0, "d1", "decode"),
        PlannedRoleChange(14.0, "p0", "gone"),
    ]
    run = cluster.run(given, RAW, UNLIMITED, SLOW_SLO, changes=changes)
    assert run.outputs == expected(cluster, given)
    assert sorted(cluster.workers.states) == ["d0", "d1", "d9", "p1"]
    assert {r.prefill_node for r in run.requests} == {"p0", "p1", "d1"}
    assert {r.decode_node for r in run.requests} >= {"d0", "d1", "d9"}
    again = cluster.run(prompts(4, 0.0), RAW, UNLIMITED, SLOW_SLO)
    assert {r.prefill_node for r in again.requests} == {"p1"}


def test_a_request_draws_the_same_tokens_on_any_worker_and_in_any_batch(cluster: LocalCluster) -> None:
    drawn = [
        Prompt(p.request_id, p.arrival_s, p.tokens, p.osl, sampling=Sampling(1.0, 50, 0.95, seed=p.request_id))
        for p in prompts(10, 0.0, 12)
    ]
    together = cluster.run(drawn, RAW, UNLIMITED, SLOW_SLO)
    alone = cluster.run(list(reversed(drawn)), RAW, UNLIMITED, SLOW_SLO, concurrency=1)
    assert together.outputs == alone.outputs
    assert together.outputs != expected(cluster, drawn)


@pytest.mark.parametrize("transport", ["unix", "shm", pytest.param("nixl", marks=NIXL)])
def test_every_transport_gives_the_same_tokens_and_leaves_no_socket(tiny_model: Path, tmp_path: Path, transport: str) -> None:
    given = prompts(8, gap_s=0.05, osl=9)
    with LocalCluster(LocalClusterSpec(tiny_model, prefill=2, pool_tokens=2048, transport=transport), tmp_path) as cluster:
        folder = Path(cluster._sockets)
        assert {path.name for path in folder.iterdir()} == {"d0.sock"}
        run = cluster.run(given, RAW, UNLIMITED, SLOW_SLO)
        assert run.outputs == expected(cluster, given)
        assert run.network["transport"] == transport
    assert not folder.exists()

"""With compute=paced the model computes the KV, and the times are those of the profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from abkt.codec.importance import Importance
from abkt.policy.view import Curve
from abkt.profile.roofline import GpuSpec, roofline
from abkt.profile.schema import Profile, RateCurve
from abkt.serve import LocalCluster, LocalClusterSpec, PlannedRoleChange
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.engine import Engine, read_spec
from abkt.serve.worker.paced import PacedEngine
from abkt.spec import KVLayout
from tests.serve.test_real_cluster import INT8, LINK, SLOW_SLO, prompts

CURVE = Curve((0.1, 0.5), (1.0, 0.01), (0.0, 8.0))


def profile(tiny_model: Path) -> Profile:
    gpu = GpuSpec("made-up", flops=2e9, memory_bytes_per_s=1e9, memory_bytes=1e9, overhead_s=0.02)
    return roofline(gpu, read_spec(tiny_model), (RateCurve(64, CURVE, CURVE),))


def test_a_paced_engine_gives_the_models_kv_and_queries(tiny_model: Path) -> None:
    layout = KVLayout(read_spec(tiny_model), blocks=64)
    engine, tokens = Engine(tiny_model, layout), torch.randint(0, 2048, (200,), generator=torch.Generator().manual_seed(3)).tolist()
    paced = PacedEngine(engine, profile(tiny_model))
    paced.prepare(tokens)
    for n, table in ((200, list(range(20, 33))), (77, [40, 3, 50, 9, 1]), (16, [7])):
        seen, true = Importance(16), Importance(16)
        paced.begin(tokens[:n], table, seen)
        copied = [paced.pool.read(table, layer, n) for layer in range(2)]
        engine.begin(tokens[:n], table, true)
        for layer in range(2):
            for found, expected in zip(copied[layer], engine.pool.read(table, layer, n), strict=True):
                assert torch.allclose(found, expected, atol=1e-5)
            assert torch.allclose(seen.queries[layer][0], true.queries[layer][0], atol=1e-4)
    row = SequenceRow(list(range(20, 34)), 200)
    before = paced.pool.data.clone()
    assert [c.token for c in paced.step([row], [5], [])] == [0]
    assert row.tokens == 201
    assert torch.equal(before, paced.pool.data)
    with pytest.raises(ValueError, match="a prompt of 201 tokens, but the KV of 200 is prepared"):
        paced.begin([*tokens, 1], list(range(20)))


@pytest.mark.slow
def test_more_paced_workers_than_cores_serve_and_change_roles(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    costs = profile(tiny_model)
    costs.save(path)
    given = [*prompts(lengths=(37, 200, 500, 64, 16) * 6, gap_s=0.1)]
    with LocalCluster(LocalClusterSpec(tiny_model, prefill=4, decode=2, pool_tokens=2048, paced=path), tmp_path) as cluster:
        run = cluster.run(given, INT8, LINK, SLOW_SLO, costs, changes=[PlannedRoleChange(1.0, "p3", "decode")])
    assert {r.outcome for r in run.requests} == {"completed"}
    assert {r.compute for r in run.requests} == {"paced"}
    assert {r.decode_node for r in run.requests} == {"d0", "d1", "p3"}
    for r in run.requests:
        assert r.prefill_busy_s >= costs.fit("prefill").seconds(tokens=r.isl)  # a sleep is never shorter
        assert r.decode_busy_s >= (r.osl - 1) * costs.fit("decode").seconds(batch=1, context=r.isl)
        assert r.isl < 100 or 0 < r.distortion_start < 1e-3  # the distortion of real KV after the real codec
    assert {token for tokens in run.outputs.values() for token in tokens} == {0}


def test_a_profile_that_cannot_pace_is_refused_before_anything_starts(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(ValueError, match="does not exist; make one with `abkt profile"):
        LocalCluster(LocalClusterSpec(tiny_model, paced=path), tmp_path)
    profile(tiny_model).save(path)
    data = json.loads(path.read_text())
    del data["fits"]["prefill"]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="has no table prefill"):
        LocalCluster(LocalClusterSpec(tiny_model, paced=path), tmp_path)

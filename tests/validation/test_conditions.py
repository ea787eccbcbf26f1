"""Conditions of a validation: those of each choice of compute, and that both worlds get the same links and roles."""

from __future__ import annotations

from pathlib import Path

import pytest

from abkt.capacity import Capacity
from abkt.profile.schema import Profile
from abkt.records import SLO
from abkt.serve import LocalClusterSpec
from abkt.serve.frontend.prompt import Prompt
from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.lib.results import read_json, read_records
from experiments.study.twin import Twin, run_simulated
from experiments.verbs.validate import ValidateConfig, facts, spec_of
from tests.serve.test_paced import profile
from tests.serve.test_real_cluster import RAW

RATE = 1e6
LENIENT = SLO(60.0, 60.0)


def config(*overrides: str) -> ValidateConfig:
    return read(ValidateConfig, {**compose("validate", list(overrides)).config, "out": Path("out")})


def test_the_default_conditions() -> None:
    made = config()
    assert (made.compute, made.device, list(made.conditions)) == ("real", "cpu", ["load_70", "load_85", "load_95", "oscillating", "thin"])
    assert [condition.utilisation for condition in made.conditions.values()][:3] == [0.70, 0.85, 0.95]
    assert {condition.cluster for condition in made.sized().values()} == {"1P1D"}
    assert not any(condition.namespaces or condition.moves for condition in made.sized().values())


def test_paced_conditions_have_clusters_links_and_roles_of_their_own() -> None:
    made = config("compute=paced")
    of = made.sized()
    loads = {"load_70": "2P2D", "load_85": "2P2D", "load_95": "2P2D"}
    assert {name: condition.cluster for name, condition in of.items()} == {**loads, "incast": "4P1D", "switches": "2P2D"}
    assert [name for name, condition in of.items() if condition.shared] == ["incast"]
    assert [name for name, condition in of.items() if condition.moves] == ["switches"]
    assert of["incast"].payload_share == pytest.approx(1448 / 1514)  # of a frame of 1,500 bytes and its Ethernet header
    assert of["load_85"].payload_share == 1.0
    said = facts(made)
    assert said["cluster"].startswith("2P2D, 4P1D on ")
    assert "share the receiver's" in said["conditions"]["incast"]
    assert said["conditions"]["switches"].endswith("d1 to prefill at 3 s, p1 to decode at 5 s, d1 to decode at 8 s")
    assert sum("share" in sentence for sentence in said["emulated"]) == 1
    larger = config("compute=paced", "prefill=3", "conditions.switches.decode=4").sized()
    assert (larger["load_85"].cluster, larger["incast"].cluster, larger["switches"].cluster) == ("3P2D", "4P1D", "3P4D")


def test_vllms_servers_are_one_pair_over_a_link_of_the_kernel() -> None:
    made = config("compute=vllm")
    steady = made.sized()["steady"]
    assert (made.compute, steady.cluster, steady.namespaces, steady.payload_share < 1) == ("vllm", "1P1D", True, True)
    assert any(sentence.startswith("Nothing of vLLM") for sentence in facts(made)["emulated"])
    spec = spec_of(made)
    assert [spec.asked(made.bitrates[name]) for name in ("raw", "int8", "int4", "embedded")] == ["raw", "int8", "int4", ""]
    for wrong, message in (("device=cuda", "measured on the CPU"), ("prefill=2", "2P1D with compute=vllm would share cores")):
        with pytest.raises(ValueError, match=message):
            config("compute=vllm", wrong)


def test_on_a_gpu_a_model_of_a_big_ones_shape_is_made_and_the_document_says_what_was_emulated() -> None:
    made = config("compute=gpu")
    assert (made.compute, made.device, made.folder) == ("paced", "cuda", Path("out/llama-3.1-8b"))
    assert {condition.cluster for condition in made.sized().values()} == {"1P1D"}
    assert made.shape
    assert made.shape.kv_bytes_per_token == 131_072
    assert any("took turns" in sentence for sentence in facts(made)["emulated"])


def prompts(count: int, gap_s: float = 0.0, isl: int = 200) -> list[Prompt]:
    return [Prompt(i, gap_s * i, tuple(range(isl)), 8) for i in range(count)]


def predicted(model: Path, costs: Profile, folder: Path, prefill: int, decode: int, given: list[Prompt], **more):
    twin = Twin(given, Capacity.constant(RATE), LENIENT, costs, **more)
    run_simulated(twin, LocalClusterSpec(model, prefill=prefill, decode=decode, pool_tokens=4096), RAW, folder)
    return read_records(folder / "requests.parquet"), read_json(folder / "summary.json")["roles"]


def test_simulated_senders_share_a_link_where_the_real_ones_do(tiny_model: Path, tmp_path: Path) -> None:
    """Four raw transfers at once: each over its own link, then all over the receiver's, then over half of that, the rest being headers."""
    costs = profile(tiny_model)
    alone_s = 13 * 16 * costs.model.kv_bytes_per_token / RATE
    wire_s = [
        predicted(tiny_model, costs, tmp_path / str(i), 4, 1, prompts(4), **more)[0].wire_busy_s
        for i, more in enumerate(({}, {"shared": True}, {"shared": True, "payload_share": 0.5}))
    ]
    for seconds, times in zip(wire_s, (1, 4, 8), strict=True):
        assert seconds.to_numpy() == pytest.approx([times * alone_s] * 4, rel=0.05)


def test_simulated_roles_change_by_the_same_schedule(tiny_model: Path, tmp_path: Path) -> None:
    """The only other decode worker computes prompts from 1 s on, until 3 s; as one that sends it has a link like the others."""
    changes = [{"at_s": 1.0, "worker": "d1", "role": "prefill"}, {"at_s": 3.0, "worker": "d1", "role": "decode"}]
    roles = {"_target_": "abkt.policy.roles.scheduled.Scheduled", "changes": changes}
    rows, log = predicted(tiny_model, profile(tiny_model), tmp_path, 1, 2, prompts(20, gap_s=0.3), roles=roles)
    assert [(worker, role) for _, worker, role in log] == [("d1", ""), ("d1", "prefill"), ("d1", ""), ("d1", "decode")]
    begun_s, ready_s, again_s, back_s = (at_s for at_s, *_ in log)
    assert 1.0 <= begun_s < 1.11
    assert begun_s < ready_s < again_s < back_s
    assert 3.0 <= again_s < 3.11
    computed, decoded = rows[rows.prefill_node == "d1"], rows[rows.decode_node == "d1"]
    assert len(computed) >= 2
    assert computed.arrival_s.between(ready_s, again_s).all()
    assert len(decoded) > 2
    assert not decoded.arrival_s.between(begun_s, back_s).any()
    assert (computed.wire_busy_s > 0.8 * 200 * profile(tiny_model).model.kv_bytes_per_token / RATE).all()
    assert (rows.outcome == "completed").all()

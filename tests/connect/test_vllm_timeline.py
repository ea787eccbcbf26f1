"""vLLM in the place of our own workers: records from hand-written traces, what its spec asks for, and the short names of the verbs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from abkt.connect.vllm.scheduler import scheduled
from abkt.connect.vllm.settings import Settings
from abkt.connect.vllm.trace import Trace, read
from abkt.serve.frontend.prompt import Prompt
from experiments.lib.verb import model_overrides
from experiments.vllm.spec import VllmSpec
from experiments.vllm.timeline import Timeline, external

ORIGIN_S = 1000.0
FIXED = "abkt.policy.bitrate.fixed."


def step(begin_s: float, *requests: tuple[str, int, int]) -> dict[str, Any]:
    return {"kind": "step", "begin_s": ORIGIN_S + begin_s, "requests": [[f"cmpl-{name}-0-ab12", before, n] for name, before, n in requests]}


def timeline(max_batch: int = 8) -> Timeline:
    """Two prompts of 100 tokens and answers of 4. The second comes while the first is computed, and while its answer is decoded."""
    p = [step(0.10, ("a", 0, 100)), step(0.60, ("b", 0, 100))]
    d = [step(1.0, ("a", 99, 1)), step(1.1, ("a", 100, 1)), step(1.2, ("a", 101, 1), ("b", 99, 1)), step(1.32, ("b", 100, 1))]
    for name, added, offered, committed, written in (("a", 0.60, 0.70, 0.90, 0.95), ("b", 1.02, 1.08, 1.12, 1.16)):
        told = {"request": f"cmpl-{name}-0-ab12", "tokens": 100}
        curve = {"bytes": [1, 2], "distortion": [1, 0], "bits": [0, 8]}
        p += [{**told, "kind": "kept", "added_s": ORIGIN_S + added, "copied_s": 0.0},
              {**told, "kind": "coded", "depth": 8, "raw_bytes": 4000, "slope": curve, "uniform": curve}]  # fmt: skip
        d += [{"kind": "loaded", "request": f"cmpl-{name}-0-ffff", "remote": f"cmpl-{name}-0-ab12", "mode": "stream", "bytes": 1000,
               "raw_bytes": 4000, "cut": 3, "distortion": 0.01, "asked_s": 0.0, "offered_s": ORIGIN_S + offered,
               "committed_s": ORIGIN_S + committed, "written_s": ORIGIN_S + written}]  # fmt: skip
    p += [{"kind": "refined", "request": "cmpl-b-0-ab12", "bytes": 300}]
    answers = {
        0: {"sent_s": ORIGIN_S, "first_s": ORIGIN_S + 1.11, "last_s": ORIGIN_S + 1.33, "tokens": 3},
        1: {"sent_s": ORIGIN_S + 0.4, "first_s": ORIGIN_S + 1.33, "last_s": ORIGIN_S + 1.5, "tokens": 3},
        2: {"sent_s": ORIGIN_S + 0.5, "first_s": ORIGIN_S + 2.0, "last_s": ORIGIN_S + 2.1, "tokens": 3},
    }
    return Timeline(p, d, answers, ORIGIN_S, {0: "a", 1: "b", 2: "c"}, max_batch)


def test_the_stages_of_a_request_are_read_from_both_traces_and_sum_to_its_time() -> None:
    found = timeline()
    a, moved = found.record(Prompt(0, 0.0, tuple(range(100)), 4))
    assert moved is not None
    stages = [a.queue_exposed_s, a.prefill_exposed_s, a.encode_exposed_s, a.wire_exposed_s, a.expand_exposed_s, a.decode_exposed_s]
    assert stages == pytest.approx([0.10, 0.50, 0.10, 0.20, 0.11, 0.32])  # decoding begins one step, 0.1 s, before the first token
    assert sum(stages) == pytest.approx(a.e2e_s)
    assert (a.ttft_s, a.rate, a.distortion_start, moved.calls) == (pytest.approx(1.11), 8.0, 0.01, 1)
    b, after = found.record(Prompt(1, 0.4, tuple(range(100)), 4))
    assert after is not None
    assert (b.expand_exposed_s, b.expand_busy_s) == (pytest.approx(0.09), pytest.approx(0.05)), "0.04 s of it were the running step's"
    assert (b.wire_bytes, after.refine_bytes) == (1300, 300)
    busy, _ = timeline(max_batch=1).record(Prompt(1, 0.4, tuple(range(100)), 4))
    assert math.isnan(busy.encode_busy_s), "the server had no place, so it did not ask"
    assert math.isnan(busy.expand_busy_s)
    assert found.front_s([a, b]) == pytest.approx([0.10]), "the second prompt waited for the first"


def test_a_request_whose_kv_was_not_loaded_is_no_measurement() -> None:
    lost, moved = timeline().record(Prompt(2, 0.5, tuple(range(100)), 4))
    assert (lost.outcome, lost.reason, moved) == ("failed", "the prefill server did not keep its KV", None)


def test_iterations_are_steps_that_went_on_at_once() -> None:
    iterations = timeline().iterations()
    assert [(batch, context) for batch, context, _ in iterations] == [(1, 100), (1, 101), (2, 202)]
    assert [seconds for _, _, seconds in iterations] == pytest.approx([0.1, 0.1, 0.12])
    assert [(coded.tokens, coded.raw_bytes) for coded in timeline().coded()] == [(100, 4000), (100, 4000)]


def test_a_name_of_vllm_holds_the_name_that_the_client_gave() -> None:
    assert external("cmpl-abkt-3-17-0-1a2b3c4d") == "abkt-3-17"


def test_a_trace_is_whole_lines_and_a_step_says_what_it_computes(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    trace = Trace(str(path))
    new = [SimpleNamespace(req_id="a", num_computed_tokens=0)]
    cached = SimpleNamespace(req_ids=["b"], num_computed_tokens=[40])
    output = SimpleNamespace(scheduled_new_reqs=new, scheduled_cached_reqs=cached, num_scheduled_tokens={"a": 32, "b": 1})
    trace.write("step", begin_s=1.0, requests=scheduled(output))
    trace.close()
    with path.open("a") as file:
        file.write('{"kind": "st')
    lines, end = read(path)
    assert lines == [{"kind": "step", "begin_s": 1.0, "requests": [["a", 0, 32], ["b", 40, 1]]}]
    assert read(path, end) == ([], end)
    assert not Trace()
    with pytest.raises(ValueError, match="cannot be written"):
        Trace(str(tmp_path / "none" / "trace"))


def test_a_run_asks_for_each_policy_by_name_or_for_the_servers_own(tmp_path: Path) -> None:
    own = Settings(bitrate="embedded")._policy
    spec = VllmSpec(tmp_path, bitrate=own)
    asked = [spec.asked(Settings(bitrate=name)._policy) for name in ("embedded", "raw", "lossless", "int8", "int4", "int2")]
    assert asked == ["", "raw", "lossless", "int8", "int4", "int2"]
    for other in ({**own, "target_distortion": 0.003}, {"_target_": f"{FIXED}Fixed", "bits": 8, "coder": "entropy"}):
        with pytest.raises(ValueError, match="vLLM's servers send by"):
            spec.asked(other)


def test_kv_of_vllm_is_float32(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 32, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 320,
              "max_position_embeddings": 8192, "torch_dtype": "bfloat16"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = VllmSpec(tmp_path).layout().model
    assert (model.dtype, model.max_tokens, model.kv_bytes_per_token) == ("float32", 2048, 2 * 2 * 2 * 32 * 4)
    assert VllmSpec(tmp_path).coders == ("fixed",)


def test_engine_is_short_for_a_key_of_the_verb() -> None:
    assert model_overrides(["engine=vllm", "model=smollm2"], "profile")[0] == ["served_by=vllm", "model_folder=smollm2"]
    assert model_overrides(["engine=vllm"], "validate")[0] == ["compute=vllm"]
    assert model_overrides(["engine=whole"], "study")[0] == ["engine=whole"]

"""Retrieval trials on a model whose keys have a large constant, as Qwen2.5's; and codecs of other projects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from abkt.codec.codec import Codec
from abkt.serve.engine.engine import Engine, read_spec
from abkt.spec import KVLayout
from experiments.lib.paths import data_path
from experiments.quality import choice, lowbit
from experiments.quality.lowbit import lines, verdicts
from experiments.quality.measure import Bench
from experiments.quality.methods import RawMethod, methods
from experiments.quality.peers import PEERS, failure, peers, reasons
from experiments.quality.samples import recall

BIAS = 100.0  # the probe's keys deviate by about 2


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """The probe with a bias on one channel of all keys: one of the pair that turns slowest, so that attention hardly feels it."""
    probe = AutoModelForCausalLM.from_pretrained(data_path("probe"), dtype=torch.float32)
    config = LlamaConfig(**{**probe.config.to_dict(), "attention_bias": True})
    model = LlamaForCausalLM(config)
    left = model.load_state_dict(probe.state_dict(), strict=False)
    assert all(name.endswith("bias") for name in left.missing_keys)
    for layer in model.model.layers:
        attention = layer.self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            part.bias.data.zero_()
        attention.k_proj.bias.data.view(config.num_key_value_heads, config.head_dim)[:, config.head_dim // 2 - 1] = BIAS
    folder = tmp_path_factory.mktemp("biased") / "biased-probe"
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def found_of(folder):
    layout = KVLayout(read_spec(folder), 72)
    bench = Bench(Engine(folder, layout))
    known = methods(Codec(layout), None)
    trials = [recall(np.random.default_rng((3, i)), 384, asks=32) for i in range(lowbit.TRIALS)]
    asked = [known[name] for name in ("raw", "int8", "int4", "kivi4", "ours", "uniform")]
    return {(v.method, v.rate): v for v in verdicts(bench, trials, asked)}


def test_a_large_constant_in_the_keys_breaks_four_bits_a_token_and_not_a_channel(biased):
    sound, broken = found_of(data_path("probe")), found_of(biased)
    assert all(verdict.bears for verdict in (sound["int4", ""], sound["kivi4", ""], sound["int8", ""]))
    assert min(broken["raw", ""].raw_found) > 0.85, "without loss the model still finds them"
    assert broken["raw", ""].found == broken["raw", ""].raw_found
    assert broken["int4", ""].bears is False
    assert max(broken["int4", ""].found) < 0.8
    for name, rate in (("int8", ""), ("kivi4", ""), ("ours", "4"), ("uniform", "4")):
        assert broken[name, rate].bears is True, (name, rate)


def test_a_model_that_finds_no_answers_gives_no_verdict():
    assert lowbit._verdict("x", "", [(0.1, 0.3), (0.9, 0.9), (0.9, 0.9)]).bears is None
    assert lowbit._verdict("x", "", [(0.82, 0.9), (0.9, 0.9), (0.9, 0.9)]).bears is True
    assert lowbit._verdict("x", "", [(0.80, 0.9), (0.9, 0.9), (0.9, 0.9)]).bears is False


def test_lines_for_any_tokenizer_ask_for_what_they_hold():
    tokenizer = AutoTokenizer.from_pretrained(data_path("probe"))
    sample = lines(tokenizer, np.random.default_rng(0), 600)
    assert 500 < len(sample.prompt) < 700
    prompt = tokenizer.decode(sample.prompt)
    numbers = [line.removesuffix(".") for line in tokenizer.decode(sample.continuation).splitlines()]
    assert len(numbers) == 8
    assert all(f"{line}.\n" in prompt for line in numbers)
    answers = tokenizer.decode([token for token, is_answer in zip(sample.continuation, sample.answers, strict=True) if is_answer])
    assert answers == "".join(f"{line.split()[-1]}.\n" for line in numbers)


def test_methods_of_packages_that_are_missing_are_named():
    own = {"raw": methods(Codec(KVLayout(read_spec(data_path("probe")), 4)), None)["raw"]}
    assert set(peers()) | set(reasons()) == {method.name for method, _, _ in PEERS}
    assert not set(peers()) & set(reasons())
    for name, reason in reasons().items():
        with pytest.raises(ValueError, match=f"codec {name}: {reason}; leave it out"):
            choice.check([name], own)
    with pytest.raises(ValueError, match="codec nothing is unknown; there are raw"):
        choice.check(["nothing"], own)
    choice.check(["all", "raw"], own)


@pytest.mark.filterwarnings("ignore")  # theirs, at import
@pytest.mark.parametrize("name", [method.name for method, _, _ in PEERS])
def test_other_projects_codecs(name):
    """Fewer bytes than raw, values near what went in; and 4 bits at no more than what 4 bits and their scales take."""
    if name in reasons():
        pytest.skip(reasons()[name])
    folder = data_path("probe")
    bench = Bench(Engine(folder, KVLayout(read_spec(folder), 40)))
    sample = recall(np.random.default_rng(0), 256, asks=20)
    held = bench.prefill(sample)
    assert failure(peers()[name], held) == ""
    (outcome,) = bench.outcomes(0, sample, [peers()[name]])
    assert outcome.nmse < (0.5 if name.endswith("2") else 0.03)
    assert 0.1 < outcome.wire_bytes / outcome.raw_bytes < 0.5
    if name in ("quanto4", "hqq4"):
        assert outcome.wire_bytes == outcome.raw_bytes * (4 + 2 * 16 / 64) / 16


def test_a_codec_that_fails_is_left_out_with_its_reason(monkeypatch):
    class Broken:
        name = "broken"

        def points(self, held):
            raise RuntimeError("group size\nmore")

    assert failure(Broken(), None) == "RuntimeError: group size"
    monkeypatch.setattr(choice, "peers", lambda: {"broken": Broken()})
    monkeypatch.setattr(choice, "reasons", lambda: {"absent": "absent is not installed"})
    own = {"raw": RawMethod()}
    chosen, left_out = choice.choose(["all"], own, [None, None])
    assert chosen == [own["raw"]]
    assert left_out == {"absent": "absent is not installed", "broken": "RuntimeError: group size"}
    assert choice.choose(["raw"], own, [None]) == ([own["raw"]], {})

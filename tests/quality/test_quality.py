"""What a codec does to a model: samples and their answers, KV that did not change, laws on made-up outcomes, and the verb."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from abkt.codec.calibration import load
from abkt.codec.codec import Codec
from abkt.serve.engine.engine import Engine, read_spec
from abkt.spec import KVLayout
from experiments.lib.curves import load_quality
from experiments.lib.paths import data_path
from experiments.probe import tasks
from experiments.quality import gates
from experiments.quality.likelihood import probed
from experiments.quality.measure import Bench, refinements
from experiments.quality.methods import RatePoint, methods
from experiments.quality.samples import read_texts, recall, text
from experiments.verbs.quality import main


@pytest.fixture(scope="module")
def bench():
    folder = data_path("probe")
    return Bench(Engine(folder, KVLayout(read_spec(folder), 40)))


def test_a_recall_sample_asks_for_what_its_prompt_holds():
    sample = recall(np.random.default_rng(0), 200, asks=16)
    ask = sample.prompt.index(tasks.ASK)
    value_of = dict(zip(sample.prompt[2:ask:2], sample.prompt[3:ask:2], strict=False))
    whole = sample.prompt + sample.continuation
    assert ask == len(sample.prompt) - 2
    assert sum(sample.answers) == 16
    for i, (token, is_answer, far) in enumerate(zip(sample.continuation, sample.answers, sample.distance, strict=True)):
        at = len(sample.prompt) + i
        if is_answer:
            assert value_of[whole[at - 1]] == token
            assert whole[at - far] == whole[at - 1], "the distance is that to the key in the prompt"
        else:
            assert far == -1
    passage = text(np.random.default_rng(0), np.arange(1000), 100, 20)
    assert passage.continuation[0] == passage.prompt[-1] + 1


def test_raw_kv_changes_nothing_and_coarse_kv_does(bench):
    sample = recall(np.random.default_rng(1), 200, asks=40)
    known = methods(Codec(bench.engine.layout), None)
    outcomes = list(bench.outcomes(0, sample, [known["raw"], known["uniform"], known["int2"], known["fp8"]]))
    raw = outcomes[0]
    assert (raw.method, raw.kl, raw.nmse, raw.attention_error) == ("raw", 0, 0, 0)
    assert raw.nll == raw.raw_nll
    assert raw.right == raw.raw_right > 0.9
    assert raw.wire_bytes == raw.raw_bytes
    assert raw.diverged_at == len(sample.continuation) - 1
    far = np.array(sample.distance[1:])[list(sample.answers[1:])]
    shares = [((far > low) & (far <= high)).mean() for low, high in ((0, 128), (128, 256), (256, 512))]
    for outcome in outcomes:
        assert math.isnan(outcome.right_to_1024), "no answer is so far from its place"
        by_distance = (outcome.right_to_128, outcome.right_to_256, outcome.right_to_512)
        parts = [share * right for share, right in zip(shares, by_distance, strict=True) if share]
        assert sum(parts) == pytest.approx(outcome.right)
    steady = [o for o in outcomes if o.method == "uniform" and "then" not in o.rate]
    assert [o.rate for o in steady] == ["1", "2", "3", "4", "6", "8"]
    for measure in ("nmse", "attention_error", "distortion"):
        values = [getattr(o, measure) for o in steady]
        assert values == sorted(values, reverse=True)
    assert steady[0].kl > 10 * steady[-1].kl
    assert steady[0].nll > steady[-1].nll
    (replayed,) = (o for o in outcomes if "then" in o.rate)
    assert replayed.rate == "2 then 4"
    assert replayed.wire_bytes == steady[3].wire_bytes
    assert steady[3].kl < replayed.kl < steady[1].kl, "a coarse start costs more than none and less than no refinement"


def test_refinements_are_a_coarse_and_a_finer_rate():
    points = [RatePoint(rate, size, lambda table: None) for rate, size in (("1.0", 10), ("2.1", 20), ("3.9", 40), ("8.0", 80))]
    assert [(a.rate, b.rate) for a, b in refinements(points)] == [("2.1", "3.9")]
    assert refinements([RatePoint("", 10, lambda table: None)]) == []


def outcome(sample, method, rate, size, nll, raw_nll=1.0):
    zero = dict.fromkeys(("nmse", "attention_error", "kl", "worst_kl", "right", "raw_right", "right_near", "right_far", "distortion"), 0.0)
    facts = {"sample": sample, "kind": "text", "tokens": 10, "method": method, "rate": rate, "wire_bytes": size, "raw_bytes": 1000}
    return {**facts, **zero, "nll": nll, "raw_nll": raw_nll, "diverged_at": 5}


def test_laws_of_a_hand_made_case():
    rows = []
    for sample in range(6):
        rows += [outcome(sample, "uniform", "2", 200, 1.5 + sample / 10), outcome(sample, "uniform", "4", 400, 1.1)]
        rows += [
            outcome(sample, "ours", "2", 190, 1.2),
            outcome(sample, "ours", "2.5", 210, 1.0),
            outcome(sample, "ours", "4", 400, 1.2),
        ]
        rows += [outcome(sample, "kivi4", "", 500, 1.2), outcome(sample, "cachegen", "", 200, 1.1)]
    frame = pd.DataFrame(rows)
    found = {gate.name: gate for gate in gates.gates(frame)}
    at_two, at_four = (found[f"text: ours less uniform, nats at {rate} bits"] for rate in ("2", "4"))
    assert at_two.value == pytest.approx(1.2 - 1.75), "the point of 190 bytes, since 210 are more than 200"
    assert at_two.kept
    assert at_two.low < at_two.value < at_two.high < 0
    assert at_four.value == pytest.approx(0.1)
    assert not at_four.kept
    saved = found["text: bytes of kivi4 that ours saves at its nll"]
    assert (saved.value, saved.kept) == (pytest.approx(1 - 190 / 500), True)
    assert (saved.low, saved.high) == (saved.value, saved.value), "the same in every sample"
    other = found["text: bytes of cachegen that ours saves at its nll"]
    assert (other.value, other.kept) == (pytest.approx(1 - 210 / 200), False)
    assert found["text: rise in nll of ours at 4.25 bits"].value == pytest.approx(0.2)


def test_bytes_saved_are_uncertain_where_samples_differ():
    """Ours at 100 bytes is better than theirs in most samples and worse in some: its next rate may be needed."""
    rows = [outcome(sample, "ours", "1", 100, 1.05 if sample < 14 else 1.2) for sample in range(20)]
    rows += [outcome(sample, "ours", "2", 150, 1.01) for sample in range(20)]
    rows += [outcome(sample, "kivi4", "", 200, 1.1) for sample in range(20)]
    value, low, high = gates.bytes_saved(pd.DataFrame(rows), "ours", "kivi4", "text")
    assert value == pytest.approx(0.5), "a mean rise of 0.095 against 0.1"
    assert (low, high) == (pytest.approx(0.25), pytest.approx(0.5))
    none = [outcome(sample, "ours", "1", 100, 1.5) for sample in range(3)] + [outcome(sample, "kivi4", "", 200, 1.1) for sample in range(3)]
    assert all(math.isnan(x) for x in gates.bytes_saved(pd.DataFrame(none), "ours", "kivi4", "text"))


def test_an_interval_of_equal_values_is_a_point_and_of_others_holds_the_mean():
    assert gates.interval(np.full(5, 0.25)) == (0.25, 0.25)
    values = np.random.default_rng(0).standard_normal(200) + 3
    low, high = gates.interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 200**0.5, rel=0.2)


def test_the_verb_writes_rates_laws_and_a_calibration(tmp_path, capsys):
    torch.manual_seed(0)
    main([f"out={tmp_path}", "samples=2", "tokens=64", "codecs=[raw,ours,uniform,kivi4]", "calibrate=true"])
    outcomes = pd.read_parquet(tmp_path / "outcomes.parquet")
    assert set(outcomes.method) == {"raw", "ours", "uniform", "kivi4"}
    assert set(outcomes["sample"]) == {0, 1}
    rates = pd.read_csv(tmp_path / "rates.csv")
    assert (rates.samples == 2).all()
    assert {"dnll_low", "dnll_high", "of_raw"} <= set(rates.columns)
    laws = json.loads((tmp_path / "gates.json").read_text())
    assert all(math.isfinite(law["value"]) or law["value"] is None for law in laws if law["value"] is not None)
    curves = load_quality(tmp_path / "curves.json")
    assert {(curve.kind, curve.method) for curve in curves} == {("recall", "ours")}
    assert len(curves) == 2
    for curve in curves:
        assert list(curve.bytes) == sorted(set(curve.bytes))
        assert list(curve.distortion) == sorted(curve.distortion, reverse=True)
    trials = json.loads((tmp_path / "trials.json").read_text())
    assert {(v["method"], v["rate"]) for v in trials["verdicts"]} >= {("raw", ""), ("kivi4", ""), ("ours", "2"), ("uniform", "4")}
    assert all(len(v["found"]) == 3 for v in trials["verdicts"])
    (path,) = tmp_path.glob("calibration.*")
    calibration = load(path)
    assert (path.suffix == ".safetensors") == (calibration.basis is not None)
    assert calibration.sensitivity.shape == (6, 2, 2)
    assert (calibration.sensitivity == 1).all(), "no head counts more in the order of the other coders"
    assert 0 <= calibration.gamma <= 1
    assert "ours" in capsys.readouterr().out


def test_text_begins_with_bos_where_the_tokenizer_adds_one_and_a_short_text_is_refused():
    ids = np.arange(1000)
    sample = text(np.random.default_rng(0), ids, 100, 20, before=(7, 8))
    assert sample.prompt[:2] == (7, 8)
    assert len(sample.prompt) == 100
    assert sample.prompt[2:] == tuple(range(sample.prompt[2], sample.prompt[2] + 98))
    assert sample.continuation == tuple(range(sample.prompt[-1] + 1, sample.prompt[-1] + 21))
    with pytest.raises(ValueError, match="the texts have 110 tokens"):
        text(np.random.default_rng(0), ids[:110], 100, 20)


def test_texts_may_be_one_file(tmp_path):
    (tmp_path / "a.txt").write_text("It was the best of times.\n" * 9)
    (tmp_path / "b.txt").write_text("It was the worst of times.\n")
    one, both = read_texts(tmp_path / "a.txt", data_path("probe")), read_texts(tmp_path, data_path("probe"))
    assert one.tolist() == both[: len(one)].tolist()
    assert len(one) < len(both)
    (tmp_path / "c.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"c\.txt\.gz cannot be read"):
        read_texts(tmp_path / "c.txt.gz", data_path("probe"))


def test_copies_scored_in_one_pass_are_scored_as_each_alone():
    """Other KV in each copy, so that a row that read another's KV would be seen."""
    folder = data_path("probe")
    bench = Bench(Engine(folder, KVLayout(read_spec(folder), 4 * 20), dtype="float32"), copies=3)
    sample = recall(np.random.default_rng(1), 200, asks=16)
    held = bench.prefill(sample)
    data = held.pool.data
    for scale, table in enumerate(bench.tables):
        data[table] = data[bench.sent] * (1 + 0.1 * scale)
    together = bench.logits_of(sample, 3)
    for scale, logits in enumerate(together):
        data[bench.received] = data[bench.sent] * (1 + 0.1 * scale)
        alone = bench.logits(sample, [(0, lambda table: None)])
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-3)
    assert (together[0] - together[2]).abs().max() > 0.1


def test_heads_that_share_a_pass_are_probed_as_each_is_alone():
    folder, scored = data_path("probe"), []
    sample = recall(np.random.default_rng(1), 128, asks=16)
    one, five = (Bench(Engine(folder, KVLayout(read_spec(folder), (1 + n) * 14), dtype="float32"), copies=n) for n in (1, 5))
    alone, together = probed(one, sample), probed(five, sample, scored.append)
    assert scored == [5, 5, 5, 5, 4]
    np.testing.assert_allclose(together, alone, rtol=1e-2, atol=1e-3)


def test_a_stopped_run_resumes(tmp_path, monkeypatch, capsys):
    """Nothing is measured twice, a torn line is dropped, and the figures are those of a run that was not stopped."""
    given = ["codecs=[ours,uniform]", "samples=3", "tokens=128", "trials=false"]
    main([f"out={tmp_path / 'whole'}", *given])
    outcomes, calls = Bench.outcomes, []

    def stops(self, index, *more, **named):
        calls.append(index)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return outcomes(self, index, *more, **named)

    monkeypatch.setattr(Bench, "outcomes", stops)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        main([f"out={out}", *given])
    with (out / "outcomes.jsonl").open("a") as file:
        file.write('{"prompt": 2, "outco')
    with pytest.raises(ValueError, match="has outcomes of another tokens"):
        main([f"out={out}", *given[:2], "tokens=256", given[3]])
    main([f"out={out}", *given])
    assert calls == [0, 1, 2, 2]
    assert "3 prompts of 128 tokens on probe, 2 measured already" in capsys.readouterr().out
    whole, again = (pd.read_parquet(place / "outcomes.parquet") for place in (tmp_path / "whole", out))
    pd.testing.assert_frame_equal(whole, again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["codecs=[ours,nothing]"], "codec nothing is unknown; there are raw, ours"),
        (["tokens=100000"], "a recall prompt has at most 1700"),
        (["tokens=8"], "tokens is 8; it must be 64"),
        (["texts=/nowhere"], "there is no .txt or .txt.gz file"),
        (["model_folder=/nowhere"], "neither a folder"),
        (["calibration=/nowhere.json"], r"/nowhere\.json"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        main([f"out={tmp_path / 'out'}", *arguments])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()

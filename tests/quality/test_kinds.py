"""Prompts of several kinds, tokens that are left out, calibration on texts, and the tables of a run."""

import gzip
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from abkt.serve.engine.engine import Engine, read_spec
from abkt.spec import KVLayout
from experiments.lib.paths import data_path
from experiments.models.tokenizer import needed_tokenizer
from experiments.quality import table
from experiments.quality.calibrate import held_out_of
from experiments.quality.calibration_kv import calibration_kv, rope_of
from experiments.quality.dropping import FirstAndLast, SnapKv, kept_logits
from experiments.quality.kinds import kinds_of, needles
from experiments.quality.measure import Bench
from experiments.quality.samples import recall
from experiments.verbs.quality import QualityConfig, calibration_samples, main

PROBE = data_path("probe")


@pytest.fixture(scope="module")
def bench():
    return Bench(Engine(PROBE, KVLayout(read_spec(PROBE), 40), dtype="float32"))


@pytest.fixture(scope="module")
def passages(tmp_path_factory):
    """Two kinds: a book's words, and JSON rows."""
    folder = tmp_path_factory.mktemp("passages")
    words = " ".join(f"word{i % 97} and {i % 89}" for i in range(4000))
    (folder / "book.txt.gz").write_bytes(gzip.compress(words.encode()))
    rows = [{"context": words[:9000], "answers": ["not read"]}, {"text": words[9000:20000]}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"books": folder / "book.txt.gz", "rows": folder / "rows.jsonl"}


def test_each_kind_has_as_many_prompts_and_they_alternate(passages):
    found = list(kinds_of(2, 200, 0, passages, ["recall", "needles"], PROBE))
    assert [sample.kind for sample in found] == ["books", "rows", "recall", "needles"] * 2
    assert len({sample.prompt for sample in found}) == 8
    for sample in found:
        assert len(sample.prompt) == 200 or sample.kind == "recall"
        assert len(sample.continuation) == len(sample.answers)
    again = list(kinds_of(3, 200, 0, passages, ["recall", "needles"], PROBE))
    assert again[:8] == found


def test_a_needle_is_in_the_prompt_and_its_digits_are_the_answers():
    tokenizer = needed_tokenizer(PROBE)
    ids = np.asarray(tokenizer.encode("some plain words of a long tale " * 400, add_special_tokens=False))
    sample = needles(tokenizer, np.random.default_rng(0), ids, 400, ())
    assert len(sample.prompt) == 400
    prompt, asked = tokenizer.decode(sample.prompt), tokenizer.decode(sample.continuation)
    numbers = [part.split(".")[0] for part in asked.split(" is ")[1:]]
    assert len(numbers) == 4
    assert all(number.strip() in prompt for number in numbers)
    answers = tokenizer.decode([t for t, a in zip(sample.continuation, sample.answers, strict=True) if a])
    assert "".join(c for c in answers if c.isdigit()) == "".join("".join(c for c in n if c.isdigit()) for n in numbers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retrieval=[riddles]"], "retrieval=riddles is unknown"),
        (["retrieval=[needles]"], "needles need a text"),
        (["+passages.books=/nowhere"], "passages.books=/nowhere: there is no file"),
        (["codecs=[kvquant]"], "kvquant calibrates on texts; give calibration_texts"),
        (["calibration_retrieval=[recall]"], "calibration_retrieval goes with calibration_passages"),
        (["calibration_texts=/tmp", "+calibration_passages.books=/tmp"], "give one of them"),
        (["calibrate=true", "+calibration_passages.books=/nowhere"], "passages.books=/nowhere: there is no file"),
    ],
)
def test_bad_kinds_are_one_line_and_write_nothing(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        main([f"out={tmp_path / 'out'}", "tokens=128", *arguments])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_kv_of_which_all_is_kept_gives_the_logits_of_the_engine(bench):
    sample = recall(np.random.default_rng(2), 200, asks=16)
    held = bench.prefill(sample)
    kv = [held.pool.read(held.table, layer, held.tokens) for layer in range(6)]
    every = torch.ones(6, 2, held.tokens, dtype=torch.bool)
    engine = bench.logits(sample, [(0, lambda t: held.pool.data.__setitem__(t, held.pool.data[held.table]))])
    ours = kept_logits(bench.engine.model, kv, every, list(sample.continuation[:-1]))
    torch.testing.assert_close(ours, engine, rtol=2e-2, atol=2e-2)
    lost = every.clone()
    lost[:, :, 2:150] = False
    assert (kept_logits(bench.engine.model, kv, lost, list(sample.continuation[:-1])) - engine).abs().max() > 0.5


def test_tokens_left_out_are_counted_and_their_values_do_not_matter(bench):
    sample = recall(np.random.default_rng(3), 200, asks=16)
    held = bench.prefill(sample)
    of_token = held.pool.layout.model.kv_bytes_per_token
    for method in (SnapKv(), FirstAndLast()):
        outcomes = list(bench.outcomes(0, sample, [method], answers_only=True))
        assert [o.rate for o in outcomes] == ["0.25", "0.5"]
        assert outcomes[0].wire_bytes < outcomes[1].wire_bytes < outcomes[1].raw_bytes
        assert outcomes[1].kl < outcomes[0].kl
        assert math.isnan(outcomes[0].nmse)
    half = list(SnapKv().points(held))[1]
    assert half.wire_bytes == 100 * of_token + 6 * 2 * 200 // 8
    assert half.kept.sum(-1).unique().tolist() == [100]
    assert half.kept[..., -32:].all()
    kv = [held.pool.read(held.table, layer, held.tokens) for layer in range(6)]
    spoilt = [tuple(part.masked_fill(~half.kept[layer][..., None], 9.0) for part in pair) for layer, pair in enumerate(kv)]
    a, b = (kept_logits(bench.engine.model, of, half.kept, list(sample.continuation[:-1])) for of in (kv, spoilt))
    torch.testing.assert_close(a, b)


def test_the_fisher_information_orders_heads_by_what_an_error_in_them_does(bench):
    samples = [recall(np.random.default_rng(i), 96, asks=16) for i in range(6)]
    found = calibration_kv(PROBE, samples)
    assert found.kv[0].shape == (6, 2, 2, 96, 64)
    order, moved = found.of_heads.flatten().argsort(), []
    held = bench.prefill(samples[0])

    def divergence(put):
        bad = bench.logits(samples[0], [(0, put)]).log_softmax(-1)
        return float((raw.exp() * (raw - bad)).sum(-1).sum())

    def put_raw(to):
        held.pool.data[to] = held.pool.data[held.table]

    raw = bench.logits(samples[0], [(0, put_raw)]).log_softmax(-1)
    for index in (int(order[-1]), int(order[0])):
        layer, kind, head = np.unravel_index(index, (6, 2, 2))

        def put(to, layer=layer, kind=kind, head=head):
            put_raw(to)
            place = torch.tensor(to[1:5])
            noise = torch.randn(held.pool.data[place, layer, kind, head].shape, generator=torch.Generator().manual_seed(1))
            held.pool.data[place, layer, kind, head] += 0.2 * noise.to(held.pool.dtype)

        moved.append(divergence(put))
    assert moved[0] > 5 * moved[1]


def test_rope_that_is_scaled_is_refused():
    from transformers import LlamaConfig

    assert rope_of(LlamaConfig(num_hidden_layers=2, rope_parameters={"rope_type": "default", "rope_theta": 5e5})).thetas == (5e5, 5e5)
    with pytest.raises(ValueError, match="scaled or partial"):
        rope_of(LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}))


def rows_of(curve, method, samples=8, noise=0.0):
    rng = np.random.default_rng(0)
    for sample in range(samples):
        for rate, (size, kl) in enumerate(curve):
            yield {
                "sample": sample, "kind": "books" if sample % 2 else "encyclopaedia", "tokens": 10, "method": method, "rate": str(rate),
                "wire_bytes": size, "raw_bytes": 1000, "nll": 2.0 + kl, "raw_nll": 2.0, "kl": kl * (1 + noise * rng.standard_normal()),
                "worst_kl": kl, "right": 1.0, "raw_right": 1.0, "agreement": 0.9,
            }  # fmt: skip


def test_tables_interpolate_and_publish_what_loses(tmp_path):
    rows = [
        *rows_of([(100, 0.1), (400, 0.001)], "embedded", noise=0.05),
        *rows_of([(400, 0.01)], "kivi4", noise=0.05),
        *rows_of([(90, 0.1)], "matter"),
        *rows_of([(500, 0.0001)], "int8"),
        *rows_of([(80, 0.2), (600, 0.02)], "embedded-uniform"),
    ]
    with (tmp_path / "outcomes.jsonl").open("w") as file:
        for row in rows:
            file.write(json.dumps({"prompt": row["sample"], "method": row["method"], "outcomes": [row]}) + "\n")
        file.write('{"prompt": 1, "meth')
    frame = table.read(tmp_path)
    assert len(frame) == len(rows)
    saved = table.against(frame, "embedded").set_index("against")["ours saves"]
    assert saved["kivi4"].startswith("50 % ["), "the geometric middle of 100 and 400 bytes, by the logarithm of KL"
    assert saved["matter"].startswith("at least -11 %")
    assert saved["int8"] == "not reached [not reached, not reached]"
    laws = table.laws(frame, "embedded")
    assert set(laws[laws["ours less"] == "uniform"].kept) >= {"yes"}
    assert table.bytes_at(np.array([1.0, 4.0]), np.array([0.1, 0.001]), 0.01) == pytest.approx(2.0)
    assert math.isnan(table.kl_at(np.array([1.0, 4.0]), np.array([0.1, 0.001]), 5.0))
    bytes_of = table.reaching(frame).set_index("codec")
    assert bytes_of.loc["embedded-uniform", ["KL 0.1", "KL 0.02", "KL 0.01"]].tolist() == ["0.147", "0.600", "not reached"]
    assert bytes_of.loc["kivi4", ["KL 0.02", "KL 0.001"]].tolist() == ["0.400", "not reached"]
    text = table.report(tmp_path)
    assert "| kivi4 | 0 | 8 | 0.400 | 0.0100 |" in text or "| kivi4 | 0 | 8 | 0.400 |" in text
    with pytest.raises(ValueError, match=r"has no outcomes\.jsonl"):
        table.read(tmp_path / "nowhere")


def test_the_verb_measures_kinds_with_rivals_that_calibrate_and_resumes_with_more(tmp_path, passages, capsys):
    given = [
        f"out={tmp_path}", "samples=1", "tokens=128", "trials=false", f"+passages.books={passages['books']}", "retrieval=[needles]",
        f"calibration_texts={passages['rows']}", "calibration_prompts=2",
    ]  # fmt: skip
    main([*given, "codecs=[kivi4]"])
    first = pd.read_parquet(tmp_path / "outcomes.parquet")
    main([*given, "codecs=[kivi4,embedded,kvtc,matter,snapkv]"])
    both = pd.read_parquet(tmp_path / "outcomes.parquet")
    assert set(both.kind) == {"books", "needles"}
    assert set(both.method) == {"kivi4", "embedded", "kvtc", "matter", "snapkv"}
    pd.testing.assert_frame_equal(both[both.method == "kivi4"].reset_index(drop=True), first)
    assert "2 prompts of 128 tokens" in capsys.readouterr().out
    assert (tmp_path / "calibration_kv.safetensors").exists()
    assert "Laws" in table.report(tmp_path)


def test_a_calibration_on_several_kinds_takes_them_in_turn_and_holds_out_one_of_each(passages, tmp_path):
    books = {"books": passages["books"]}
    config = QualityConfig(
        PROBE, codecs=("klt",), samples=1, tokens=128, tile_tokens=128, texts=None, passages={}, retrieval=(), calibration_texts=None,
        calibration_passages=books, calibration_retrieval=("recall", "needles"), calibration_prompts=8, calibration=None, calibrate=True,
        trials=False, seed=0, out=tmp_path,
    )  # fmt: skip
    taken = list(calibration_samples(config, 8))
    assert [s.kind for s in taken] == ["books", "recall", "needles"] * 2 + ["books", "recall"]
    evaluated = kinds_of(3, 128, 0, books, ("recall", "needles"), PROBE)
    assert not {s.prompt for s in taken} & {s.prompt for s in evaluated}
    assert held_out_of(taken) == 3
    assert held_out_of([replace(s, kind=str(i)) for i, s in enumerate(taken)]) == 4

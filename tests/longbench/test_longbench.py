"""`abkt longbench`: against transformers' own generation, raw against itself, runs that are resumed, and bad input."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from abkt.codec.baselines import ALL as BASELINES
from abkt.codec.codec import Codec
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.engine import Engine, read_spec
from abkt.serve.worker import raw as wire
from abkt.spec import KVLayout
from experiments.lib import usage
from experiments.lib.paths import data_path
from experiments.longbench.answer import Answer, agreement, lacks_memory, nll
from experiments.longbench.data import DatasetFolder
from experiments.longbench.models import read_model
from experiments.longbench.questions import ask, examples
from experiments.longbench.report import interval, table
from experiments.longbench.rows import Rows
from experiments.longbench.tasks import TASKS
from experiments.verbs.longbench import main


def ran(out, model, data, *arguments):
    link = [] if any(word.startswith("network=") for word in arguments) else ["network=unlimited"]
    main([f"out={out}", f"model_folder={model}", f"data={data}", *link, *arguments])
    return pd.read_parquet(out / "rows.parquet").set_index(["task", "id"]), pd.read_csv(out / "table.csv").set_index("name")


def test_answers_are_those_of_transformers_itself(qwen, made_up, tmp_path, capsys):
    """Greedy generation and the reference's likelihood, by the model as transformers runs it; lossy KV beside."""
    rows, found = ran(tmp_path / "out", qwen, made_up, "bitrate=int4", "samples=2")
    assert "plan: 8 questions of 4 tasks on tiny-qwen2, 0 answered already" in capsys.readouterr().out
    assert (rows.outcome == "completed").all()
    assert rows.lossless.all(), "raw KV that travelled and KV that did not say the same"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.float32), AutoTokenizer.from_pretrained(qwen)
    for task, most in (("qasper", 8), ("v2", 128)):
        example = next(examples(TASKS[task], DatasetFolder(made_up), 1))
        asked = ask(TASKS[task], example, tokenizer, 640 - most, most, True)
        row = rows.loc[task, example.id]
        assert row.prompt_tokens == len(asked.tokens)
        prompt = torch.tensor([asked.tokens])
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=most, do_sample=False)[0, len(asked.tokens) :]
        assert row.raw_said == tokenizer.decode(out, skip_special_tokens=True)
        reference = tokenizer.encode(example.answers[0], add_special_tokens=False)
        assert row.scored_tokens == max(0, len(reference) - 1)
        if len(reference) > 1:
            whole = torch.tensor([[*asked.tokens, *reference]])
            with torch.no_grad():
                logits = model(whole).logits[0, len(asked.tokens) : -1].log_softmax(-1)
            expected = -logits[torch.arange(len(reference) - 1), reference[1:]].mean()
            assert row.raw_nll == pytest.approx(float(expected), abs=2e-4)
            assert row.nll != row.raw_nll
    assert (rows.wire_bytes < rows.raw_wire_bytes / 2).all()
    assert (rows["mode"] == "stream").all()
    assert {"trec", "qasper", "samsum", "v2", "v2: easy", "v2: hard", "v2: short", "Few shot", "Single-doc QA", "all"} == set(found.index)
    assert (found.loc["v2: short"].samples, found.loc["v2: hard"].samples, found.loc["all"].samples) == (2, 1, 8)


@pytest.mark.parametrize("bitrate", ["raw", "lossless"])
def test_kv_without_loss_changes_no_answer(qwen, made_up, tmp_path, bitrate):
    rows, found = ran(tmp_path / "out", qwen, made_up, f"bitrate={bitrate}", "samples=1")
    assert (rows.score == rows.raw_score).all()
    assert (rows.agreement == 1).all()
    assert (rows.nll.dropna() == rows.raw_nll.dropna()).all()
    total = found.loc["all"]
    assert (total.delta, total.dnll, total.distortion, total.diverged) == (0, 0, 0, 0)


def test_raw_bytes_may_go_through_the_hosts_memory(qwen, made_up, tmp_path, monkeypatch):
    """As those of a GPU's pool have to."""
    monkeypatch.setattr(wire, "in_place", lambda pool, transport: False)
    rows, _ = ran(tmp_path / "out", qwen, made_up, "bitrate=raw", "samples=1", "tasks=[qasper,trec]")
    assert rows.lossless.all()
    assert (rows.agreement == 1).all()


def test_the_entropy_coder_takes_fewer_bytes_and_leaves_less(real, tmp_path):
    arguments = ("tasks=[passkey]", "samples=1", "max_tokens=400", "bitrate=int4", f"calibration={data_path('probe') / 'calibration.json'}")
    (fixed, _), (entropy, _) = (ran(tmp_path / c, data_path("probe"), real, *arguments, f"coder={c}") for c in ("fixed", "entropy"))
    assert entropy.wire_bytes.sum() < fixed.wire_bytes.sum()
    assert entropy.distortion.sum() < 0.5 * fixed.distortion.sum()


def test_a_stopped_run_resumes(qwen, made_up, tmp_path, monkeypatch, capsys):
    """Nothing is asked twice, a torn row is dropped, what lacked memory is tried again; other settings are refused."""
    out, encode, calls = tmp_path / "out", Codec.encode, []

    def short_of_memory(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return encode(self, *arguments, **named)

    monkeypatch.setattr(Codec, "encode", short_of_memory)
    rows, found = ran(out, qwen, made_up, "tasks=[qasper]", "bitrate=int4")
    assert rows.outcome.tolist() == ["completed", "failed", "completed"]
    assert rows.reason.iloc[1].startswith("out of memory: [enforce fail")
    assert (found.loc["qasper"].samples, found.loc["qasper"].failed) == (2, 1)
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"task": "qasper", "id')
    first = (out / "rows.jsonl").read_text().splitlines()[0]
    rows, found = ran(out, qwen, made_up, "tasks=[qasper,trec]", "bitrate=int4")
    assert len(calls) == 3 + 1 + 3
    assert "2 answered already" in capsys.readouterr().out
    assert len(rows) == 6
    assert (found.loc["all"].samples, found.loc["all"].failed) == (6, 0)
    assert (out / "rows.jsonl").read_text().splitlines()[0] == first
    with pytest.raises(ValueError, match="has rows of another bitrate; give another out"):
        ran(out, qwen, made_up, "tasks=[qasper]", "bitrate=raw")
    (out / "rows.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1 is no row of this version"):
        ran(out, qwen, made_up, "tasks=[qasper]", "bitrate=int4")


def test_real_files_with_the_probe(real, tmp_path):
    """A few questions of the real files, cut to little so that they are quick."""
    arguments = ("tasks=[multifieldqa_zh,passage_retrieval_zh,longeval_200_lines,passkey]", "samples=1", "max_tokens=300")
    rows, found = ran(tmp_path / "out", data_path("probe"), real, *arguments, "network=80m")
    assert (rows.outcome == "completed").all()
    assert rows.lossless.all()
    assert (rows.prompt_tokens <= 300).all()
    assert (rows.whole_tokens > 5000).all()
    assert found.loc["all"].truncated == 4
    assert (rows.nll - rows.raw_nll).abs().max() < 1.5
    assert found.loc["all"].of_raw < 0.6
    assert (rows.first_s > rows.prefill_s + rows.encode_s + rows.wire_s + rows.expand_s).all()


@pytest.mark.slow
def test_real_files_at_the_probes_length(real, tmp_path):
    """8 bits hardly move the answers, 2 bits do: in likelihood and token by token."""
    found = {}
    for bits in (2, 8):
        arguments = ("samples=2", "max_tokens=1500", "network=80m", f"bitrate=int{bits}")
        rows, of_task = ran(tmp_path / str(bits), data_path("probe"), real, *arguments)
        assert len(rows) == 7 * 2
        assert rows.lossless.all()
        assert (rows.prompt_tokens <= 1500).all()
        found[bits] = of_task.loc["all"]
    assert abs(found[8].dnll) < 0.02
    assert found[2].agreement < found[8].agreement
    assert 0.5 < found[8].of_raw < 0.56


@pytest.mark.slow
def test_real_files_with_another_architecture(real, qwen, tmp_path):
    rows, found = ran(
        tmp_path / "out", qwen, real, "samples=2", "bitrate=embedded", "network=80m", "tasks=[retrieval,passage_retrieval_zh]"
    )
    assert len(rows) == 10
    assert rows.lossless.all()
    assert found.loc["all"].of_raw < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=/nowhere"], "data=/nowhere is no folder"),
        (["tasks=[nothing]"], "task nothing is unknown"),
        (["tasks=[narrativeqa]"], r"dataset2maxlen\.json has no length for narrativeqa"),
        (["tasks=[passkey]"], "task passkey is not in"),
        (["samples=0"], "samples is 0; it must be at least 1"),
        (["max_tokens=10"], "max_tokens is 10; it must be at least 64"),
        (["model_folder=/nowhere"], "neither a folder"),
        (["network=wan_10ms"], "choose a network without delay and loss"),
        (["calibration=/nowhere.json"], "does not exist"),
        (["coder=none"], "coder"),
        (["coder=klt"], "coder=klt needs calibration=FILE"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(made_up, tmp_path, arguments, message):
    data = [] if arguments[0].startswith("data=") else [f"data={made_up}"]
    with pytest.raises(ValueError, match=message) as caught:
        main([f"out={tmp_path / 'out'}", *data, *arguments])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_asked(made_up, tiny_model, tmp_path):
    with pytest.raises(ValueError, match="tiny has no tokenizer"):
        main([f"out={tmp_path / 'out'}", f"data={made_up}", f"model_folder={tiny_model}"])


def test_every_token_that_ends_an_answer_ends_it(qwen, tmp_path):
    """Llama 3 lists three; the tokenizer's own counts where the model lists none."""
    folder = tmp_path / "model"
    shutil.copytree(qwen, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7, 9]}))
    assert {5, 7, 9} <= read_model(folder).stops
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    assert read_model(folder).stops == {read_model(folder).tokenizer.eos_token_id}


def test_agreement_counts_missing_tokens():
    assert agreement([1, 2, 3], [1, 2, 3]) == (1.0, 3)
    assert agreement([1, 9, 3], [1, 2, 3]) == (2 / 3, 1)
    assert agreement([1, 2], [1, 2, 3, 4]) == (0.5, 2)


def test_which_errors_are_a_lack_of_memory():
    assert lacks_memory(MemoryError())
    assert lacks_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not lacks_memory(RuntimeError("shapes do not fit"))


def test_a_category_is_the_mean_of_its_tasks_and_its_interval_holds_it(tmp_path):
    rows = Rows(tmp_path, {})
    rows.begin()
    rng = np.random.default_rng(0)
    for task, count, gain in (("qasper", 40, 0.1), ("narrativeqa", 10, -0.3)):
        for i in range(count):
            raw = rng.uniform(0.3, 0.6)
            rows.add(
                Answer(
                    task,
                    "Single-doc QA",
                    str(i),
                    raw_bytes=8,
                    wire_bytes=2,
                    score=raw + gain + rng.normal(0, 0.02),
                    raw_score=raw,
                    nll=1.2,
                    raw_nll=1.0,
                )
            )
    rows.add(Answer("qasper", "Single-doc QA", "bad", outcome="failed", reason="out of memory: x"))
    found = table(Rows(tmp_path, {}).frame()).set_index("name")
    both = found.loc["Single-doc QA"]
    assert both.delta == pytest.approx(-10, abs=1.5), "not the mean over samples, which is +2"
    assert both.delta_low < both.delta < both.delta_high
    assert both.delta_high - both.delta_low < 3
    assert (both.samples, both.failed, found.loc["narrativeqa"].failed) == (50, 1, 0)
    assert both.dnll == pytest.approx(0.2)
    assert found.loc["all"].delta == both.delta
    assert interval([np.full(5, 0.25)]) == (0.25, 0.25, 0.25)


def test_result_files_are_complete_or_absent(made_up, qwen, tmp_path):
    out = tmp_path / "out"
    ran(out, qwen, made_up, "tasks=[trec]", "samples=1", "bitrate=raw")
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        "rows.jsonl",
        "rows.parquet",
        "settings.json",
        "summary.json",
        "table.csv",
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["bitrate"] == "raw"
    assert [line["name"] for line in summary["table"]] == ["trec", "Few shot", "all"]


@pytest.mark.slow
@pytest.mark.parametrize("bitrate", usage.choices("bitrate"))
def test_every_policy_answers(qwen, made_up, tmp_path, bitrate):
    rows, _ = ran(tmp_path / "out", qwen, made_up, f"bitrate={bitrate}", "samples=2", "tasks=[qasper]", "network=10m")
    assert (rows.outcome == "completed").all()
    assert rows.lossless.all()
    assert (rows.wire_bytes <= 1.1 * rows.raw_wire_bytes).all()


def test_a_published_codec_beside_the_policy_gets_the_same_prefill(qwen, made_up, tmp_path, monkeypatch):
    """Its KV is what its own encode and expand give, without a wire; a later run adds a codec and keeps what was answered."""
    out, calls = tmp_path / "out", []
    prefill = Engine.prefill
    monkeypatch.setattr(Engine, "prefill", lambda *given: calls.append(1) or prefill(*given))
    arguments = ("tasks=[qasper,trec]", "samples=2", "bitrate=int8")
    rows, _ = ran(out, qwen, made_up, *arguments, "beside=[kivi4]")
    assert len(calls) == 4
    assert rows.groupby("method").size().to_dict() == {"int8": 4, "kivi4": 4}
    found = pd.read_csv(out / "table.csv").set_index(["method", "name"])
    assert found.loc[("kivi4", "all")].raw_score == found.loc[("int8", "all")].raw_score

    model, tokenizer = Engine(qwen, KVLayout(read_spec(qwen), 200)), AutoTokenizer.from_pretrained(qwen)
    asked = ask(TASKS["qasper"], next(examples(TASKS["qasper"], DatasetFolder(made_up), 1)), tokenizer, 632, 8, True)
    table, tokens = list(range(60)), len(asked.tokens)
    prefill(model, asked.tokens, table)
    (kivi,) = (codec for codec in BASELINES if codec.name == "kivi4")
    message = kivi.encode(model.pool, table, tokens)
    kivi.expand(message, model.pool, table)
    reference = tokenizer.encode(asked.example.answers[0], add_special_tokens=False)
    row = rows[rows.method == "kivi4"].loc["qasper", asked.example.id]
    assert row.nll == pytest.approx(nll(model, SequenceRow(table, tokens), reference), abs=1e-5)
    assert len(message) < row.wire_bytes < len(message) + 2000

    calls.clear()
    rows, _ = ran(out, qwen, made_up, *arguments, "beside=[kivi4]")
    assert not calls
    rows, _ = ran(out, qwen, made_up, *arguments, "beside=[kivi4,cachegen]")
    assert rows.groupby("method").size().to_dict() == {"int8": 4, "kivi4": 4, "cachegen": 4}
    with pytest.raises(ValueError, match=r"beside=zip: there are .*kivi4"):
        ran(out, qwen, made_up, "beside=[zip]")


def test_a_stopped_run_has_asked_something_of_every_task(qwen, made_up, tmp_path, capsys):
    out = tmp_path / "out"
    ran(out, qwen, made_up, "tasks=[qasper,trec,samsum]", "samples=2", "bitrate=raw")
    asked = [json.loads(line)["task"] for line in (out / "rows.jsonl").read_text().splitlines()]
    assert asked == ["qasper", "trec", "samsum"] * 2
    said = capsys.readouterr().out
    assert "1 of 6 questions: " in said
    assert "left" in said

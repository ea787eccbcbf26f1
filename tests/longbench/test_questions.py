"""The protocol of a question: prompts, cutting and templates; and damaged data."""

from __future__ import annotations

import gzip
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from experiments.lib.paths import data_path
from experiments.longbench.data import REPOSITORY, DatasetFolder, Hub, parse_rows
from experiments.longbench.questions import ask, examples, most_tokens
from experiments.longbench.tasks import TASKS
from experiments.models.resolve import resolve_model


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(data_path("probe"))


@pytest.fixture(scope="module")
def templated(qwen):
    return AutoTokenizer.from_pretrained(qwen)


def first(task, folder):
    return next(examples(TASKS[task], DatasetFolder(folder), 1))


def test_a_prompt_is_the_published_text_around_the_row(made_up):
    found = list(examples(TASKS["trec"], DatasetFolder(made_up), None))
    assert [e.id for e in found] == ["trec-0", "trec-1", "trec-2"]
    assert found[0].prompt.startswith("Type?\ntrec 0 says 0. trec")
    assert found[0].prompt.endswith("\nwho?")
    assert (found[0].answers, found[0].classes) == (("Human",), ("Human", "Place"))
    assert most_tokens(TASKS["trec"], DatasetFolder(made_up)) == 6
    assert len(list(examples(TASKS["trec"], DatasetFolder(made_up), 2))) == 2


def test_the_second_version_fills_its_own_marks(made_up):
    found = first("v2", made_up)
    assert found.prompt == "<text>\ntext 0\n</text>\nQ: what?\n(A) one\n(B) two\n(C) 3\n(D) 4\n"
    assert (found.answers, found.splits) == (("B",), ("easy", "short"))
    assert most_tokens(TASKS["v2"], DatasetFolder(made_up)) == 128


def test_the_middle_is_cut_out_and_both_ends_stay(made_up, tokenizer):
    example = first("qasper", made_up)
    whole = tokenizer(example.prompt).input_ids
    asked = ask(TASKS["qasper"], example, tokenizer, limit=101, most=8, chat=True)
    assert asked.truncated
    assert asked.whole_tokens == len(whole) > 101
    assert len(asked.tokens) <= 101
    assert asked.tokens[:40] == tuple(whole[:40])
    assert asked.tokens[-40:] == tuple(whole[-40:])
    fits = ask(TASKS["qasper"], example, tokenizer, limit=len(whole), most=8, chat=True)
    assert fits.tokens == tuple(whole)
    assert not fits.truncated


def test_a_template_goes_around_conversations_alone_and_counts(made_up, templated):
    def text(task, limit, chat=True):
        asked = ask(TASKS[task], first(task, made_up), templated, limit, 8, chat)
        assert len(asked.tokens) <= limit
        return templated.decode(asked.tokens)

    for limit in (100, 5000):
        said = text("qasper", limit)
        assert said.startswith("[USER] qasper 0")
        assert said.endswith("Answer: [/USER]")
        assert "[USER]" not in text("trec", limit)
        assert "[USER]" not in text("qasper", limit, chat=False)


@given(text=st.text(min_size=1, max_size=400), limit=st.integers(8, 120))
def test_no_prompt_is_longer_than_its_limit(text, limit, tokenizer):
    """Cut in the middle of a character, ids decode to a mark that takes more of them: then more is cut."""
    from experiments.longbench.data import Example

    asked = ask(TASKS["trec"], Example("0", text, ("x",)), tokenizer, limit, 8, True)
    assert 0 < len(asked.tokens) <= limit or asked.whole_tokens == 0


def test_a_template_longer_than_the_limit_is_reported(made_up, templated):
    with pytest.raises(ValueError, match="does not fit 8 tokens"):
        ask(TASKS["qasper"], first("qasper", made_up), templated, 8, 8, True)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("hotpotqa", r"dataset2prompt\.json has no prompt for hotpotqa"),
        ("passkey", r"task passkey is not in .*: there is no kivi_passkey_examples\.jsonl"),
    ],
)
def test_a_missing_task(made_up, task, message):
    with pytest.raises(ValueError, match=message):
        first(task, made_up)


def test_damaged_rows():
    assert list(parse_rows(b'{"a": 1}\n\n{"a": 2}', "x.jsonl")) == [{"a": 1}, {"a": 2}]
    assert list(parse_rows(b' [{"a": 1}]', "x.json")) == [{"a": 1}]
    for raw, message in ((b'{"a": 1}\n{"a"', "x, line 2: no JSON"), (b'"a"', "x, line 1: a row is an object"), (b"[1", "x is no list")):
        with pytest.raises(ValueError, match=message):
            list(parse_rows(raw, "x"))


def test_a_row_of_something_else_is_named(made_up, tmp_path):
    (tmp_path / "dataset2prompt.json").write_text('{"trec": "{context}{input}"}')
    (tmp_path / "v1_trec.jsonl.gz").write_bytes(gzip.compress(b'{"context": "a", "input": "b", "answers": ["c"]}\n'))
    with pytest.raises(ValueError, match="task trec, row 1 is not one of its rows: KeyError"):
        first("trec", tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        DatasetFolder(tmp_path / "none")


def test_the_hub_gives_archives_lists_and_prompts(made_up, tmp_path):
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(made_up / "data" / "trec.jsonl", "data/trec.jsonl")
    asked = []

    def fetch(repository, name):
        asked.append((repository, name))
        return archive if name == "data.zip" else made_up / "data" / "data.json"

    hub = Hub(
        fetch,
        lambda path: (made_up / "config" / path.split("/")[-1]).read_text() if "config" in path else (made_up / "0shot.txt").read_text(),
    )
    found = list(examples(TASKS["trec"], hub, None))
    assert found == list(examples(TASKS["trec"], DatasetFolder(made_up), None))
    assert list(examples(TASKS["v2"], hub, None)) == list(examples(TASKS["v2"], DatasetFolder(made_up), None))
    assert asked == [("zai-org/LongBench", "data.zip"), ("zai-org/LongBench-v2", "data.json")]
    with pytest.raises(ValueError, match=r"task qasper is not in data\.zip"):
        list(hub.rows(TASKS["qasper"]))
    with pytest.raises(ValueError, match="task passkey is not on the hub"):
        list(hub.rows(TASKS["passkey"]))


def test_no_hub_is_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    def gone(*_, **__):
        raise LocalEntryNotFoundError("no connection\nand more")

    def offline(*_, **__):
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gone)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no route")))
    for call, message in (
        (lambda: list(Hub().rows(TASKS["trec"])), "the hub cannot be reached for zai-org/LongBench: no connection; give data=DIR"),
        (lambda: Hub().text("v1", "dataset2prompt.json"), "repository cannot be reached .*no route; give data=DIR"),
        (lambda: resolve_model("owner/name"), "owner/name is no folder, and the hub cannot give it: offline"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert REPOSITORY.startswith("https://")


def test_real_rows_become_questions(real):
    """Of each task that lies there: an answer that the prompt holds, where the task is to find it."""
    found = {name: next(examples(task, DatasetFolder(real), 1)) for name, task in TASKS.items() if DatasetFolder(real).has(task)}
    assert set(found) == {
        "multi_news",
        "multifieldqa_zh",
        "passage_retrieval_zh",
        "longeval_200_lines",
        "longeval_600_lines",
        "kv_retrieval_75",
        "passkey",
    }
    for name in ("passage_retrieval_zh", "longeval_200_lines", "longeval_600_lines", "kv_retrieval_75", "passkey"):
        assert found[name].answers[0] in found[name].prompt
        assert TASKS[name].score(found[name].answers[0], found[name].answers) == 1
    for name, example in found.items():
        assert TASKS[name].score(example.answers[0], example.answers, example.classes) == pytest.approx(1), name
    assert "阅读以下文字" in found["multifieldqa_zh"].prompt

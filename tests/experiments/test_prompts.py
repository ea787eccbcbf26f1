"""The prompts of a twin are in the language of the model that serves them."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from abkt.serve.frontend.prompt import Prompt
from experiments.lib.paths import data_path
from experiments.models.prompts import answers, prompt_kind, prompts_for
from experiments.models.tokenizer import BOOK, bos_ids, needed_tokenizer, tokenizer_of
from sim.workload.requests import Request

REQUESTS = [Request(i, float(i), isl, 4) for i, isl in enumerate((1, 9, 64, 300))]
WITH_BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<bos>": {"id": "<bos>", "ids": [0], "tokens": ["<bos>"]}},
}


@pytest.fixture(params=[False, True], ids=["plain", "with BOS"])
def speaking(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    """A random model with the probe's tokenizer, which is no probe. With BOS, the tokenizer begins every text with token 0."""
    folder = tmp_path / "speaking"
    shutil.copytree(tiny_model, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(data_path("probe") / name, folder)
    if request.param:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": WITH_BOS}))
    return folder


def test_a_model_gets_passages_of_the_book_in_its_own_tokens(speaking: Path) -> None:
    prompts = prompts_for(REQUESTS, speaking, seed=3)
    assert [(p.request_id, p.arrival_s, p.isl, p.osl) for p in prompts] == [(r.request_id, r.arrival_s, r.isl, 4) for r in REQUESTS]
    tokenizer = needed_tokenizer(speaking)
    before = bos_ids(tokenizer)
    assert before == ((0,) if json.loads((speaking / "tokenizer.json").read_text())["post_processor"] == WITH_BOS else ())
    book = "".join(gzip.decompress(data_path(BOOK).read_bytes()).decode().split())
    for prompt in prompts[1:]:
        assert prompt.tokens[: len(before)] == before
        text = tokenizer.decode(prompt.tokens[len(before) :])
        assert "".join(text.replace("�", "").split()) in book  # a passage may begin inside of a character
        assert prompt.expected == ()
    assert prompts == prompts_for(REQUESTS, speaking, seed=3)
    assert prompts[3].tokens != prompts_for(REQUESTS, speaking, seed=4)[3].tokens


def test_the_probe_gets_recall_lines_with_their_answers() -> None:
    probe = data_path("probe")
    assert prompt_kind(probe) == "recall lines"
    for prompt in prompts_for(REQUESTS[1:], probe, seed=0):
        assert prompt.expected
        at = max(i for i in range(1, prompt.isl - 1) if prompt.tokens[i] == prompt.tokens[-1])
        assert prompt.tokens[at + 1 : at + 4] == prompt.expected  # beside the asked key


def test_a_model_without_a_tokenizer_gets_ids_below_its_vocabulary(tiny_model: Path) -> None:
    assert tokenizer_of(tiny_model) is None
    assert prompt_kind(tiny_model) == "random ids"
    tokens = [token for prompt in prompts_for(REQUESTS, tiny_model, seed=0) for token in prompt.tokens]
    assert min(tokens) >= 0
    assert 1024 < max(tokens) < 2048  # the whole vocabulary is used


def test_a_tokenizer_of_another_model_is_refused(speaking: Path) -> None:
    config = json.loads((speaking / "config.json").read_text())
    (speaking / "config.json").write_text(json.dumps(config | {"vocab_size": 400}))
    with pytest.raises(ValueError, match="more ids than the model's 400"):
        prompts_for(REQUESTS, speaking, seed=0)


def test_right_answers_are_counted_only_where_they_are_known() -> None:
    known, unknown = Prompt(0, 0.0, (1, 2), 3, (7, 8, 9)), Prompt(1, 0.0, (1, 2), 3)
    assert answers([known, unknown], {0: [7, 8, 0], 1: [5, 5, 5]}) == {"first": 1.0, "rest": 0.5}
    assert answers([unknown], {1: [5, 5, 5]}) == {}

"""Small models and a data folder in LongBench's format, made here; the real files where they are available."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.lib.paths import ROOT, data_path

REAL = ROOT.parent / "shared" / "data" / "longbench"
V2_PROMPT = "<text>\n$DOC$\n</text>\nQ: $Q$\n(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n(D) $C_D$\n"
V2_ROW = {"domain": "x", "sub_domain": "y", "question": " what? ", "choice_A": "one", "choice_B": "two", "choice_C": "3", "choice_D": "4"}


@pytest.fixture(scope="session")
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip("LongBench's files are not at ../shared/data/longbench")
    return REAL


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 (biases on Q, K and V, tied embeddings) with the probe's tokenizer and a chat template."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen") / "tiny-qwen2"
    tokenizer = AutoTokenizer.from_pretrained(data_path("probe"))
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=len(tokenizer), max_position_embeddings=640, tie_word_embeddings=True, dtype="float32", **shape)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}[USER] {{ m['content'] }} [/USER]{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of each kind, in the layout of the published archive."""
    folder = tmp_path_factory.mktemp("longbench")
    prompts = {"trec": "Type?\n{context}\n{input}", "qasper": "{context}\nQuestion: {input}\nAnswer:", "samsum": "{context}\n{input}"}
    write(folder / "config" / "dataset2prompt.json", prompts)
    write(folder / "config" / "dataset2maxlen.json", {"trec": 6, "qasper": 8, "samsum": 8})
    (folder / "0shot.txt").write_text(V2_PROMPT)

    def row(name: str, number: int, answers: list[str], classes: list[str] | None = None) -> dict:
        context = " ".join(f"{name} {number} says {i}." for i in range(60))
        return {"_id": f"{name}-{number}", "context": context, "input": "who?", "answers": answers, "all_classes": classes}

    (folder / "data").mkdir()
    for name, answers, classes in (
        ("trec", ["Human"], ["Human", "Place"]),
        ("qasper", ["a cat sat", "b"], None),
        ("samsum", ["so so"], None),
    ):
        lines = [json.dumps(row(name, number, answers, classes)) for number in range(3)]
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    splits = [("easy", "short"), ("hard", "short")]
    rows = [
        V2_ROW | {"_id": str(i), "difficulty": d, "length": n, "answer": "B", "context": f"text {i}"} for i, (d, n) in enumerate(splits)
    ]
    write(folder / "data" / "data.json", rows)
    return folder


def write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))

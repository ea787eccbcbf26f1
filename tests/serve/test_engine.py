"""The engine over a block pool against transformers' own generate: the same tokens in fp32, wherever the blocks lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.engine import Engine, read_spec
from abkt.spec import KVLayout


def generate(folder: Path, prompt: list[int], osl: int) -> list[int]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.generate(torch.tensor([prompt]), max_new_tokens=osl, do_sample=False)[0, len(prompt) :].tolist()


def test_a_batch_over_scattered_or_adjacent_blocks_gives_the_tokens_of_generate(tiny_model: Path) -> None:
    engine = Engine(tiny_model, KVLayout(read_spec(tiny_model), blocks=64))
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 2048, (n,), generator=random).tolist() for n in (37, 100, 5, 16)]
    tables = [[9, 2, 30, 7], list(range(40, 48)), [60], [33, 31]]
    outputs = [[engine.prefill(prompt, table)] for prompt, table in zip(prompts, tables, strict=True)]
    rows = [SequenceRow(table, len(prompt)) for prompt, table in zip(prompts, tables, strict=True)]
    for _ in range(8):
        for out, token in zip(outputs, engine.decode(rows, [out[-1] for out in outputs]), strict=True):
            out.append(token)
    assert outputs == [generate(tiny_model, prompt, 9) for prompt in prompts]


def test_scores_after_a_prompt_are_those_of_the_whole_sequence_at_once(tiny_model: Path) -> None:
    """Several tokens at a time in scattered blocks are compared with one forward pass of transformers without a cache."""
    from transformers import AutoModelForCausalLM

    engine = Engine(tiny_model, KVLayout(read_spec(tiny_model), blocks=64))
    tokens = torch.randint(0, 2048, (90,), generator=torch.Generator().manual_seed(2)).tolist()
    table = [9, 2, 30, 7, 11, 3]
    engine.prefill(tokens[:37], table)
    row = SequenceRow(table, 37)
    found = torch.cat([engine.score(tokens[37:60], row), engine.score(tokens[60:61], row), engine.score(tokens[61:], row)])
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        whole = model(torch.tensor([tokens])).logits[0, 37:]
    assert row.tokens == 90
    assert torch.allclose(found, whole, atol=1e-4)


def test_rows_do_not_write_into_each_others_blocks(tiny_model: Path) -> None:
    engine = Engine(tiny_model, KVLayout(read_spec(tiny_model), blocks=8))
    engine.prefill(list(range(20)), [3, 5])
    before = engine.pool.data.clone()
    engine.prefill(list(range(100, 130)), [0, 7])
    engine.decode([SequenceRow([0, 7], 30)], [1])
    changed = {block for block in range(8) if not torch.equal(before[block], engine.pool.data[block])}
    assert changed == {0, 7}


def test_too_few_blocks_and_too_many_tokens_are_refused(tiny_model: Path) -> None:
    engine = Engine(tiny_model, KVLayout(read_spec(tiny_model), blocks=80))
    with pytest.raises(ValueError, match="20 tokens need 2 blocks of 16; the table has 1"):
        engine.prefill(list(range(20)), [3])
    with pytest.raises(ValueError, match="1025 tokens are more than the 1024"):
        engine.prefill([0] * 1025, list(range(80)))


def test_a_model_folder_without_a_config_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json; give a Hugging Face folder"):
        read_spec(tmp_path)

"""The workers' attention against transformers' eager attention, on a tiny random model of each family; or the family is refused by name.

Every model has a window or chunk of 24 tokens where its family has one, and every row is longer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from abkt.kv.pool import Pool
from abkt.serve.engine.attention import ForwardPass, SequenceRow
from abkt.serve.engine.cache import PoolCache
from abkt.serve.engine.engine import Engine, read_spec
from abkt.serve.engine.features import Unsupported, attention_features
from abkt.spec import KVLayout
from tests.serve.families import (
    OTHERS,
    REFUSED,
    SERVED,
    WINDOW,
    eager_logits,
    prompts,
    refused_table,
    save_model,
    served_table,
    small_config,
)

TABLES = [[0, 1, 2, 3], [9, 5, 7, 6]]  # adjacent blocks, and scattered ones
LENGTHS = (41, 33)  # of the prompts, so that the rows of a batch have different lengths
TOLERANCE = 1e-4

UNBUILT = {
    "blt": "bytes and patches, four models in one",
    "cohere_compass_text": "its config class alone does not make a model",
    "dbrx": "its sub-configs need sizes of their own",
    "dots3_note": "its sizes depend on each other",
    "dots3_note_text": "its sizes depend on each other",
    "emu3": "its text config does not name a causal model",
    "gemma3n": "layers that share KV need as many layers as the real ones",
    "gemma3n_text": "layers that share KV need as many layers as the real ones",
    "gemma4": "its embeddings per layer are too large for a test",
    "gemma4_text": "its embeddings per layer are too large for a test",
    "gemma4_assistant": "it shares the KV of another model",
    "mamba2": "its sizes depend on each other",
    "mllama": "its text config does not name a causal model",
    "musicgen": "its config needs those of its parts",
    "musicgen_melody": "its config needs those of its parts",
    "phi4_multimodal": "its audio and vision parts are too large for a test",
    "reformer": "its config alone is not that of a decoder",
    "xmod": "it needs a default language",
    "zamba2": "its sizes depend on each other",
    "zaya": "its sizes depend on each other",
}
"""Families of which no tiny model can be made from a config's sizes, and why. They are not known to be right."""


def made(family: str, more: dict[str, Any], folder: Path) -> Path:
    """A tiny model of a family in a folder."""
    save_model(small_config(CONFIG_MAPPING[family], **more), folder)
    return folder


def logits(engine: Engine, rows: torch.Tensor, together: bool) -> list[torch.Tensor]:
    """Logits of each row from the end of its prompt on: more tokens at once, then single tokens, in a batch or one row at a time."""
    held, found = [], []
    for row, table, length in zip(rows, TABLES, LENGTHS, strict=True):
        engine.prefill(row[:length].tolist(), table)
        held.append(SequenceRow(table, length))
        found.append([engine.score(row[length : length + 9].tolist(), held[-1])])
    for _ in range(10):
        for batch in [[0, 1]] if together else [[0], [1]]:
            begun = [held[i] for i in batch]
            tokens, positions = [[int(rows[i, held[i].tokens])] for i in batch], [[row.tokens] for row in begun]
            with torch.inference_mode():
                step = engine._logits(tokens, positions, ForwardPass(engine.pool, begun))
            for i, of_row in zip(batch, step, strict=True):
                found[i].append(of_row)
                held[i].tokens += 1
    return [torch.cat(each) for each in found]


def check_logits(folder: Path) -> None:
    rows = prompts()
    want = eager_logits(folder, rows)
    assert want.std() > 0.01
    engine = Engine(folder, KVLayout(read_spec(folder), blocks=16))
    batch, alone = logits(engine, rows, together=True), logits(engine, rows, together=False)
    for i, length in enumerate(LENGTHS):
        assert torch.allclose(batch[i], want[i, length : length + 19], atol=TOLERANCE)
        assert torch.allclose(batch[i], alone[i], atol=1e-5)


@pytest.mark.parametrize("family", SERVED)
def test_logits_are_those_of_eager_attention_alone_and_in_a_batch(family: str, tmp_path: Path) -> None:
    """A prompt, more tokens at once, and single tokens, each against one eager pass over the whole row."""
    check_logits(made(family, SERVED[family], tmp_path / family))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "gpt_oss", "llama4_text", "cohere2", "exaone4", "qwen2", "opt"])
def test_generate_over_the_pool_gives_the_tokens_of_generate(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = made(family, SERVED[family], tmp_path / family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    prompt = prompts(1)[:, :40]
    cache = PoolCache(Pool(KVLayout(read_spec(folder), blocks=8)), [[5, 2, 7, 0]])
    assert torch.equal(model.generate(prompt, past_key_values=cache, **options), model.generate(prompt, **options))


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_not_computed_is_refused_by_name_when_the_model_is_loaded(family: str, tmp_path: Path) -> None:
    more, name = REFUSED[family]
    config = small_config(CONFIG_MAPPING[family], **more)
    folder = tmp_path / family
    folder.mkdir()
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]]
    config.dtype = "float32"
    config.save_pretrained(folder)
    with pytest.raises(Unsupported, match="it cannot be served here") as refused:
        load(config, folder)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def load(config: Any, folder: Path) -> None:
    """As a worker does: the config first, then the weights, which show what the config does not tell."""
    spec = read_spec(folder)
    save_model(config, folder)
    Engine(folder, KVLayout(spec, blocks=4))


WITHOUT = {
    "mistral": {"sliding_window": None},
    "gemma2": {"attn_logit_softcapping": None},
    "gemma3_text": {"sliding_window": 100},
    "llama4_text": {"attention_chunk_size": 100},
}


@pytest.mark.parametrize("family", WITHOUT)
def test_the_rows_compared_are_ones_in_which_the_feature_matters(family: str, tmp_path: Path) -> None:
    """Without it, the same weights give logits that are far outside of the tolerance, beyond the window as at the cap."""
    rows = prompts()
    with_it = eager_logits(made(family, SERVED[family], tmp_path / "with"), rows)
    without = eager_logits(made(family, {**SERVED[family], **WITHOUT[family]}, tmp_path / "without"), rows)
    far = (with_it - without).abs().amax(-1)
    assert far[:, 45:].max() > 100 * TOLERANCE
    if family != "gemma2":
        assert far[:, : WINDOW - 1].max() < TOLERANCE


def test_attention_sinks_matter_in_the_rows_compared(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = made("gpt_oss", {}, tmp_path / "gpt_oss")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(-1e9)
        without = model(prompts()).logits
    assert (without - eager_logits(folder, prompts())).abs().max() > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(SERVED) - set(REFUSED) - set(UNBUILT)))
def test_every_other_family_of_transformers_is_right_or_refused(family: str, tmp_path: Path) -> None:
    """A family that a new version of transformers adds is one more case of this test."""
    more = OTHERS.get(family, {})
    try:
        attention_features(small_config(CONFIG_MAPPING[family], **more))  # first, because many that are refused cannot be made small
        check_logits(made(family, more, tmp_path / family))
    except Unsupported as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


def test_the_tables_of_the_page_on_attention_are_these_families() -> None:
    page = (Path(__file__).parents[2] / "docs" / "attention.md").read_text()
    assert served_table() in page
    assert refused_table() in page
    assert f"For {len(UNBUILT)} of them no tiny model could be made" in page

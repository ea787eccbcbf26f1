"""What a model computes in: its own dtype where that is fast, float32 elsewhere; the KV keeps the model's dtype, and answers agree."""

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from abkt.serve import LocalClusterSpec
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.compute_dtype import choose_dtype, compute_dtype
from abkt.serve.engine.engine import Engine, read_spec
from abkt.spec import KVLayout


@pytest.mark.parametrize(("ratio", "dtype"), [(6.6, "float32"), (1.3, "float32"), (1.2, "bfloat16"), (0.4, "bfloat16")])
def test_float32_where_it_is_clearly_faster(ratio: float, dtype: str) -> None:
    assert choose_dtype("bfloat16", ratio).dtype == dtype


def test_a_model_in_float32_is_not_timed() -> None:
    chosen = compute_dtype("float32")
    assert chosen.dtype == "float32"
    assert math.isnan(chosen.ratio)


def test_the_measured_choice_follows_its_own_ratio() -> None:
    chosen = compute_dtype("bfloat16")
    assert chosen == choose_dtype("bfloat16", chosen.ratio)
    assert chosen.ratio > 0


def test_words_say_what_and_why() -> None:
    assert choose_dtype("bfloat16", 6.6).words("bfloat16") == (
        "compute in float32, since bfloat16 products take 6.6 times as long here; KV in bfloat16"
    )


@pytest.fixture
def bf16_model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_pool_keeps_the_models_dtype(bf16_model: Path) -> None:
    """A prompt in one piece, and the same prompt whose second half is appended, give the same next-token logits in float32."""
    layout = KVLayout(read_spec(bf16_model), blocks=16)
    engine = Engine(bf16_model, layout, dtype="float32")
    assert engine.pool.data.dtype is torch.bfloat16
    assert next(engine.model.parameters()).dtype is torch.float32
    tokens = torch.randint(0, 512, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    whole = engine.prefill(tokens, [0, 1, 2, 3])
    engine.prefill(tokens[:30], [4, 5, 6, 7])
    row = SequenceRow([4, 5, 6, 7], 30)
    logits = engine.score(tokens[30:], row)
    assert logits.dtype is torch.float32
    assert int(logits[-1].argmax()) == whole
    assert torch.equal(engine.pool.read([0, 1, 2, 3], 0, 60)[0], engine.pool.read([4, 5, 6, 7], 0, 60)[0])


def test_a_spec_takes_known_dtypes_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype is int3; it must be auto or one of float32, bfloat16, float16"):
        LocalClusterSpec(tmp_path, dtype="int3")

"""What is read from a model folder, and the one line that refuses a folder that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from abkt.serve.engine.engine import Engine, read_spec, rope_theta
from abkt.serve.engine.model_folder import eos_tokens, read_folder
from abkt.spec import KVLayout
from tests.serve.families import save_model

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def folder_of(tmp_path: Path, config: dict[str, Any], dtype: torch.dtype | None = torch.bfloat16) -> Path:
    """A folder with a config and a small checkpoint of a dtype."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    if dtype:
        save_file({"wide": torch.zeros(40, 3, dtype=dtype), "bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)])
def test_a_config_without_dtype_means_what_most_of_the_checkpoint_holds(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    assert read_spec(folder_of(tmp_path, LLAMA, dtype)).dtype == name


def test_a_dtype_in_the_config_goes_first(tmp_path: Path) -> None:
    assert read_spec(folder_of(tmp_path, {**LLAMA, "torch_dtype": "float16"})).dtype == "float16"


def test_without_a_dtype_or_a_checkpoint_the_message_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its config names no dtype, and there is no safetensors file that does; add dtype to it"):
        read_spec(folder_of(tmp_path, LLAMA, None))


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x04\0\0\0\0\0\0\0[1]x", b"\x02\0\0\0\0\0\0\0{"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, data: bytes) -> None:
    folder_of(tmp_path, LLAMA, None)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file, or it is damaged"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its config cannot be read"),
        ("[]", "its config cannot be read"),
        ("null", "its config cannot be read"),
        ('{"model_type": "no-such-family"}', "its config cannot be read"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "its config cannot be read"),
        ('{"model_type": "t5"}', "is not a causal language model of transformers"),
        ('{"model_type": "qwen2_5_vl"}', "is not a causal language model of transformers"),
        ('{"auto_map": {"AutoConfig": "run.Me"}, "model_type": "custom"}', "its config cannot be read"),
    ],
)
def test_a_config_that_cannot_be_served_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "run.py").write_text("raise SystemExit('code of a model folder was run')")
    with pytest.raises(ValueError, match=message) as refused:
        read_spec(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_multimodal_wrapper_has_the_shapes_of_its_text_model(tmp_path: Path) -> None:
    text = {key: value for key, value in LLAMA.items() if key not in ("model_type", "architectures")}
    config = {"model_type": "gemma3", "dtype": "bfloat16", "text_config": {**text, "head_dim": 16, "sliding_window": 24}}
    spec = read_spec(folder_of(tmp_path, config))
    assert (spec.layers, spec.kv_heads, spec.head_dim, spec.vocabulary, spec.dtype) == (2, 2, 16, 512, "bfloat16")
    assert (spec.max_tokens, spec.window, spec.layer_windows) == (256, 24, (24, 24))


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(2, None, (2,)), ([2, 3, 9], None, (2, 3, 9)), (2, [7, 2], (7, 2)), (None, 5, (5,)), (None, None, ())],
)
def test_all_tokens_that_end_an_answer_are_told(tmp_path: Path, config: Any, generation: Any, expected: tuple[int, ...]) -> None:
    folder_of(tmp_path, {**LLAMA, "eos_token_id": config})
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert eos_tokens(tmp_path) == expected


def test_rope_of_layers_with_different_bases_has_none_that_the_codec_could_use(tmp_path: Path) -> None:
    assert rope_theta(folder_of(tmp_path, {**LLAMA, "rope_theta": 5e5})) == 5e5
    bases = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in (("full_attention", 1e6), ("sliding_attention", 1e4))}
    assert rope_theta(folder_of(tmp_path, {**LLAMA, "model_type": "gemma3_text", "rope_parameters": bases})) is None


def test_a_model_whose_rope_switches_is_held_to_the_length_before_it(tmp_path: Path) -> None:
    """Phi-3 with LongRoPE: up to the switch its logits are eager's, and a longer prompt is refused with a reason."""
    from transformers import Phi3Config

    from tests.serve.test_families import check_logits

    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    sizes = {key: value for key, value in LLAMA.items() if key not in ("model_type", "architectures")}
    config = Phi3Config(
        **sizes, rope_parameters={**rope, "original_max_position_embeddings": 64}, original_max_position_embeddings=64, pad_token_id=0
    )
    save_model(config, tmp_path)
    found = read_folder(tmp_path)
    assert found.spec.max_tokens == 64
    assert "LongRoPE turns all angles of a batch once a row is longer than 64 tokens" in found.features.why_longest
    check_logits(tmp_path)
    with pytest.raises(ValueError, match="65 tokens are more than the 64"):
        Engine(tmp_path, KVLayout(found.spec, 8)).prefill([5] * 65, list(range(5)))


def test_a_token_outside_of_the_vocabulary_is_refused(tiny_model: Path) -> None:
    engine = Engine(tiny_model, KVLayout(read_spec(tiny_model), blocks=4))
    with pytest.raises(ValueError, match="token 2048 is not among the 2048 of model tiny; make the prompt with the model's own tokenizer"):
        engine.prefill([1, 2048, 2], [0])
    with pytest.raises(ValueError, match="token -1 is not among"):
        engine.prefill([1, -1], [0])


def test_an_unknown_argument_of_attention_is_refused_and_a_known_name_with_a_value_too() -> None:
    from types import SimpleNamespace

    from transformers.masking_utils import causal_mask_function

    from abkt.kv.pool import Pool
    from abkt.serve.engine.attention import ForwardPass, SequenceRow, attend, running
    from abkt.serve.engine.features import Unsupported
    from abkt.serve.engine.masks import LayerMask
    from abkt.spec import ModelSpec

    pool = Pool(KVLayout(ModelSpec("m", 1, 2, 8, dtype="float32"), 2))
    query = torch.ones(1, 2, 3, 8)
    layer, mask = SimpleNamespace(layer_idx=0), LayerMask(causal_mask_function)
    with running(ForwardPass(pool, [SequenceRow([0], 0)])):
        attend(layer, query, query, query, mask, scaling=1.0, position_ids=torch.zeros(1, 3), new_feature=None)
        for more, message in (
            ({"new_feature": 1.0}, "the unknown attention argument new_feature"),
            ({"position_bias": torch.zeros(1)}, "the unknown attention argument position_bias"),
            ({"dropout": 0.1}, "dropout"),
            ({"is_causal": False}, "bidirectional"),
            ({"sliding_window": 16}, "a sliding window of 16 tokens beside a mask of all"),
        ):
            with pytest.raises(Unsupported, match=message):
                attend(layer, query, query, query, mask, **more)
        for wrong in (None, torch.zeros(1, 1, 3, 3)):
            with pytest.raises(Unsupported, match="attention of its own"):
                attend(layer, query, query, query, wrong)
    with pytest.raises(ValueError, match=r"call the model through abkt\.serve\.engine\.engine\.Engine"):
        attend(layer, query, query, query, mask)

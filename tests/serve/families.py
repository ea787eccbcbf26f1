"""Tiny random models of any family of transformers, made from its real config class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TOKENS, WINDOW = 60, 24
SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "intermediate_size_mlp": 96,
    "shared_expert_intermediate_size": 48,
    "ffn_hidden_size": 96,
    "word_embed_proj_dim": 64,
    "hidden_dropout": 0.0,
}
"""Sizes by the key of the config; a key that a config does not have is left out."""


def small_config(config: type, **more: Any) -> Any:
    """The smallest usable config of a class, with the family's own defaults for everything but sizes; of a multimodal one its text part."""
    from transformers import PreTrainedConfig

    whole: PreTrainedConfig = config()
    text = whole.get_text_config(decoder=True)
    names = text.to_dict()
    own = {text.attribute_map.get(key, key): value for key, value in SMALL.items()}  # GPT-2 says n_layer for num_hidden_layers
    given = {key: value for key, value in own.items() if names.get(key) is not None or (key in names and key.endswith("token_id"))}
    kinds = names.get("layer_types")
    if kinds and "layer_types" not in more:
        given["layer_types"] = _both_ends(kinds, SMALL["num_hidden_layers"])
    return type(text)(**{**given, **more})


def _both_ends(kinds: list[str], count: int) -> list[str]:
    """`count` kinds of layers in which every kind of the family appears."""
    distinct = list(dict.fromkeys(kinds))
    return (kinds[: count - len(distinct)] + distinct)[:count]


def save_model(config: Any, folder: Path, seed: int = 1) -> None:
    """Save a random model of a config, with weights large enough for attention to matter."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)


def eager_logits(folder: Path, rows: torch.Tensor) -> torch.Tensor:
    """transformers' own logits [rows, tokens, vocabulary], with eager attention and without a cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(rows, use_cache=False).logits


def prompts(count: int = 2, tokens: int = TOKENS, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 500, (count, tokens), generator=torch.Generator().manual_seed(seed))


SERVED: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "cohere": {},
    "cohere2": {},
    "ernie4_5": {},
    "exaone4": {},
    "gemma": {},
    "gemma2": {"attn_logit_softcapping": 0.2},
    "gemma3": {},
    "gemma3_text": {},
    "glm4": {},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": {},
    "granite": {},
    "helium": {},
    "llama": {},
    "llama4_text": {"floor_scale": 8},
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "olmo2": {},
    "olmo3": {},
    "opt": {},
    "phi": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "layer_types": None},
    "qwen3": {},
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {},
}
"""Families whose logits are compared on each run of the tests, and what their tiny configs say beside sizes."""

OTHERS: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 8},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["full_attention"] * 4},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
}
"""What the tiny configs of other families need beside sizes."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bart": ({}, "an encoder and cross-attention"),
    "bert": ({}, "bidirectional attention"),
    "bloom": ({}, "ALiBi position biases"),
    "deepseek_v3": ({}, "latent attention (MLA)"),
    "diffllama": ({}, "layers that attend more than once"),
    "falcon": ({}, "attention of its own"),
    "falcon_h1": ({}, "state-space layers"),
    "gemma4_unified_text": ({}, "layers of different KV shapes"),
    "jetmoe": ({}, "layers of different KV shapes"),
    "lfm2": ({"layer_types": ["conv", "full_attention", "conv", "full_attention"]}, "layers of conv"),
    "mamba": ({}, "state-space layers"),
    "minimax": ({}, "layers of linear_attention"),
    "mpt": ({}, "ALiBi position biases"),
    "qwen3_next": ({}, "layers of linear_attention"),
    "recurrent_gemma": ({}, "recurrent layers"),
    "rwkv": ({}, "recurrent layers"),
}
"""Families that are refused when they are loaded, and the feature that the message names."""


def served_table() -> str:
    """The table of docs/attention.md: the families that are compared, and their features."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from abkt.serve.engine.features import attention_features

    rows: dict[str, list[str]] = {}
    for family, more in SERVED.items():
        names = attention_features(small_config(CONFIG_MAPPING[family], **more)).names
        rows.setdefault(", ".join(sorted(name.split(" of ")[0] for name in names)) or "none", []).append(f"`{family}`")
    lines = [f"| {features} | {', '.join(families)} |" for features, families in sorted(rows.items())]
    return "\n".join(["| features beyond causal attention | families |", "|---|---|", *lines])


def refused_table() -> str:
    """The table of docs/attention.md: families that are refused, and the feature that the message names."""
    rows: dict[str, list[str]] = {}
    for family, (_, name) in REFUSED.items():
        rows.setdefault(name, []).append(f"`{family}`")
    lines = [f"| {name} | {', '.join(families)} |" for name, families in sorted(rows.items())]
    return "\n".join(["| what the message names | such as |", "|---|---|", *lines])

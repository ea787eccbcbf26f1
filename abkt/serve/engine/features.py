"""What a model's attention needs, read from its config: named, and refused where the workers do not compute it.

What the config does not tell is found when the model is loaded (`engine.Engine`): a keyword argument that attention does not know, a layer
that does not call it, a mask of another form, or state that passes from token to token outside of K and V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WINDOWED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of layers that see only the last tokens, and the key of the config that says how many."""
KINDS = {"full_attention", *WINDOWED}
SWITCHED_ROPE = {"longrope": "LongRoPE", "dynamic": "dynamic NTK RoPE"}
"""Kinds of RoPE whose angles change once any row of a batch is longer than a length. Up to it they are those of every row."""


class Unsupported(ValueError):
    """A feature of a model's attention that is not implemented; the message names it."""


@dataclass(frozen=True, slots=True)
class AttentionFeatures:
    """The attention of a model.

    names : its features beyond causal attention over all tokens, such as `sliding window of 512 in 15 of 18 layers`.
    layer_windows : for each layer, how many tokens a query sees, itself included; 0: all of them.
    longest : most tokens for which the answers are right; 0: the config's own bound.
    why_longest : why it is less than the config's bound.
    """

    names: tuple[str, ...]
    layer_windows: tuple[int, ...]
    longest: int = 0
    why_longest: str = ""


def attention_features(config: Any) -> AttentionFeatures:
    """The features of a model's attention. config: a transformers text config.

    Raises Unsupported, which names the feature, if the workers do not compute it.
    """
    if name := unsupported(config):
        raise Unsupported(name)
    windows, names = _windows(config), []
    for key, word in (("sliding_attention", "sliding window"), ("chunked_attention", "chunks")):
        sizes = {w for w, kind in zip(windows, _kinds(config), strict=True) if kind == key and w}
        if sizes:
            count = sum(kind == key for kind in _kinds(config))
            names.append(f"{word} of {', '.join(map(str, sorted(sizes)))} tokens in {count} of {len(windows)} layers")
    if any(getattr(config, "no_rope_layers", None) or ()) and getattr(config, "attn_temperature_tuning", False):
        names.append("query scale that grows with the position, in layers without RoPE")
    if cap := getattr(config, "attn_logit_softcapping", None):
        names.append(f"soft cap of {cap:g} on attention logits")
    if getattr(config, "model_type", "") == "gpt_oss" or getattr(config, "add_swa_attention_sink_bias", False):
        names.append("attention sinks")
    ropes = _ropes(config)
    longest, why = 0, ""
    for rope in ropes:
        kind = rope.get("rope_type", "default")
        if kind in SWITCHED_ROPE:
            switch = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
            longest = int((kind == "longrope" and switch) or config.max_position_embeddings)
            why = f"{SWITCHED_ROPE[kind]} turns all angles of a batch once a row is longer than {longest} tokens"
            names.append(f"{SWITCHED_ROPE[kind]} up to its switch at {longest} tokens")
    return AttentionFeatures(tuple(names), windows, longest, why)


def unsupported(config: Any) -> str:
    """The name of a feature that the workers do not compute; empty if the config has none."""
    keys = set(config.to_dict())
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder and cross-attention"
    if any(key.startswith(("mamba_", "ssm_", "rwkv")) or key in ("state_size", "ssm_state_size", "time_step_rank") for key in keys):
        return "state-space layers"
    if getattr(config, "model_type", "") in ("rwkv", "xlstm", "recurrent_gemma"):
        return "recurrent layers"
    if other := sorted(set(_kinds(config)) - KINDS):
        return f"layers of {', '.join(other)}"
    if getattr(config, "kv_lora_rank", None):
        return "latent attention (MLA)"
    if getattr(config, "alibi", False) or getattr(config, "model_type", "") in ("bloom", "mpt"):
        return "ALiBi position biases"
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return "bidirectional attention"
    if any(rope.get("mrope_section") for rope in _ropes(config)):
        return "M-RoPE (positions of images and video)"
    return ""


def _kinds(config: Any) -> list[str]:
    """The kind of each layer."""
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    kinds = list(getattr(config, "layer_types", None) or ())
    if kinds:
        return kinds
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return ["sliding_attention" if window else "full_attention"] * layers


def _windows(config: Any) -> tuple[int, ...]:
    return tuple(int(getattr(config, WINDOWED[kind], None) or 0) if kind in WINDOWED else 0 for kind in _kinds(config))


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The parameters of RoPE: one set, or one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]

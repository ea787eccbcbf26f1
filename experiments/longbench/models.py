"""A Hugging Face causal LM as the tasks need it: its shape, its tokenizer, and the tokens that end an answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abkt.serve.engine.engine import read_spec, rope_theta
from abkt.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Model:
    """spec: shape of the model. rope_theta: base of its rotary position embedding; None if it has none."""

    spec: ModelSpec
    tokenizer: Any
    rope_theta: float | None

    def stops(self, model: Any) -> frozenset[int]:
        """Tokens that end an answer, from the model's generation config or from the tokenizer."""
        said = getattr(model.generation_config, "eos_token_id", None)
        ids = [self.tokenizer.eos_token_id] if said is None else said if isinstance(said, list) else [said]
        return frozenset(int(i) for i in ids if i is not None)


def read_model(folder: Path) -> Model:
    """Read a model folder.

    Raises
    ------
    ValueError
        One line, where the config or the tokenizer cannot be read, or the model's attention differs from that of abkt.serve (softmax over
        all earlier tokens), so that its answers would be wrong.
    """
    from transformers import AutoConfig, AutoTokenizer

    spec = read_spec(folder)
    config = AutoConfig.from_pretrained(folder)
    if unlike := differences(config):
        raise ValueError(f"model {spec.name} has {unlike}; its KV cannot be served here yet")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model {spec.name} has no tokenizer that can be read ({first}); put its files into {folder}") from None
    if len(tokenizer) < 2:
        raise ValueError(f"model {spec.name} has an empty tokenizer; put its files into {folder}")
    return Model(spec, tokenizer, rope_theta(folder))


def differences(config: Any) -> str:
    """How a model's attention differs from softmax over all earlier tokens, in words; empty if no difference is known."""
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if other:  # a sliding window is allowed, because prompts are no longer than it
        return f"layers of {', '.join(other)}"
    if getattr(config, "attn_logit_softcapping", None):
        return "a cap on its attention logits"
    return "a latent KV cache" if getattr(config, "kv_lora_rank", None) else ""

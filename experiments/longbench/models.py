"""Any Hugging Face causal LM as the tasks need it: its tokenizer, what it holds, and where an answer ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abkt.serve.engine.engine import read_spec, rope_theta
from abkt.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Model:
    spec: ModelSpec
    tokenizer: Any
    rope_theta: float | None

    def stops(self, model: Any) -> frozenset[int]:
        """Tokens that end an answer: those of the model's generation config, or the tokenizer's."""
        said = getattr(model.generation_config, "eos_token_id", None)
        ids = [self.tokenizer.eos_token_id] if said is None else said if isinstance(said, list) else [said]
        return frozenset(int(i) for i in ids if i is not None)


def read_model(folder: Path) -> Model:
    """Raises ValueError, one line, without a config or a tokenizer that can be read, and for a model whose attention is not that of
    abkt.serve (all tokens seen, plain softmax): its answers would be another model's."""
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
    """What of a model's attention is not softmax over all earlier tokens, in words; empty if nothing is known."""
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if other:  # a sliding window is none: no more tokens than it holds are taken
        return f"layers of {', '.join(other)}"
    if getattr(config, "attn_logit_softcapping", None):
        return "a cap on its attention logits"
    return "a latent KV cache" if getattr(config, "kv_lora_rank", None) else ""

"""The KV of calibration texts, and the empirical Fisher information of K and V, for the codecs that calibrate.

For each text, continuations are drawn from the model after its KV. The gradient of their log-likelihood with respect to the cached K
(before RoPE) and V says how much an error there moves the answers; its outer product, averaged over tokens, texts and draws, is the Fisher
information of each (layer, K or V, head).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from abkt.codec.baselines.calibrated.kv import SINKS, CalibrationKV
from abkt.codec.baselines.rope import Rope
from experiments.quality.samples import QualitySample

DRAWS = 2


def calibration_kv(folder: Path, texts: Sequence[QualitySample], done: Callable[[int], None] = lambda count: None) -> CalibrationKV:
    """KV and Fisher information of a model on texts. done: called with 1 after each text.

    Raises ValueError, one line, for a model whose RoPE is not plain.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    rope = rope_of(AutoConfig.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval().requires_grad_(False)
    found, total, count = [], None, 0
    for number, sample in enumerate(texts):
        kv = prefilled(model, sample.prompt)
        found.append(kv.bfloat16())
        after = torch.tensor([sample.continuation])
        for draw in range(DRAWS):
            gradient = gradients(model, kv, after, torch.Generator().manual_seed(number * DRAWS + draw))
            gradient[:, 0] = rope.undone(gradient[:, 0])
            outer = torch.einsum("lkhtd,lkhte->lkhde", gradient[..., SINKS:, :], gradient[..., SINKS:, :]) / (kv.shape[3] - SINKS)
            total = outer.double() if total is None else total + outer
            count += 1
        done(1)
    if total is None:
        raise ValueError("calibration needs at least one text")
    return CalibrationKV(tuple(found), rope, total / count)


def prefilled(model: Any, prompt: Sequence[int]) -> torch.Tensor:
    """KV of a prompt, [layers, 2, heads, tokens, head_dim] float32."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    with torch.no_grad():
        model(torch.tensor([list(prompt)]), past_key_values=cache, logits_to_keep=1)
    return torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers])


def gradients(model: Any, kv: torch.Tensor, after: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The gradient of the log-likelihood of drawn tokens with respect to kv, in its shape. after: [1, n], tokens after the prompt; the
    model reads these, and what it would say next at each is drawn."""
    from transformers import DynamicCache

    leaf = kv.clone().requires_grad_()
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(leaf):
        cache.update(keys[None], values[None], layer)
    log_p = model(after, past_key_values=cache).logits[0].log_softmax(-1)
    drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
    (gradient,) = torch.autograd.grad(log_p.gather(-1, drawn).sum(), leaf)
    return gradient


def rope_of(config: Any) -> Rope:
    """The RoPE of each layer. Raises ValueError, one line, for a scaled or partial one."""
    text = config.get_text_config(decoder=True)
    given = text.rope_parameters
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    of_layers = [given.get(kind, given) for kind in kinds]
    if any(each.get("rope_type", "default") != "default" or each.get("partial_rotary_factor", 1.0) != 1.0 for each in of_layers):
        raise ValueError("the model's RoPE is scaled or partial, which the codecs that calibrate do not undo; leave calibration_texts out")
    return Rope(tuple(float(each["rope_theta"]) for each in of_layers))

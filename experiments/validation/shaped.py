"""A model of a given shape with random weights, as a Hugging Face folder. Its answers mean nothing; its costs are those of the shape."""

from __future__ import annotations

from pathlib import Path

import torch

from abkt.spec import ModelSpec

SPREAD = 0.02  # standard deviation of the weights, as in an untrained Llama


def make(shape: ModelSpec, folder: Path, seed: int) -> None:
    """Write a dense Llama: config.json, then model.safetensors. A folder that has both for this shape is left as it is.

    All weights are in memory at once. Raises ValueError where the shape is not that of a dense Llama.
    """
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    if shape.experts or shape.kv_kinds != 2 or shape.window or min(shape.hidden, shape.heads, shape.inner, shape.vocabulary) < 1:
        raise ValueError(f"shape {shape.name} is not that of a dense Llama with hidden, heads, inner and vocabulary; take llama-3.1-8b")
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_tokens,
        tie_word_embeddings=False,
        dtype=shape.dtype,
        architectures=["LlamaForCausalLM"],
    )
    if (folder / "model.safetensors").is_file() and LlamaConfig.from_pretrained(folder).to_dict() == config.to_dict():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config).state_dict()
    random, dtype = torch.Generator().manual_seed(seed), getattr(torch, shape.dtype)
    weights = {
        name: torch.ones(of.shape, dtype=dtype)
        if of.dim() == 1
        else torch.empty(of.shape, dtype=dtype).normal_(0, SPREAD, generator=random)
        for name, of in shapes.items()
    }
    part = folder / "model.safetensors.part"
    save_file(weights, part, metadata={"format": "pt"})
    part.replace(folder / "model.safetensors")

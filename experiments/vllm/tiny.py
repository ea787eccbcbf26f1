"""A tiny Llama with random weights and a tokenizer of bytes, made in seconds: for tests and demonstrations that need no download."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 320


def make(folder: Path, layers: int = 2, heads: int = 4, kv_heads: int = 2, head_dim: int = 32, seed: int = 0) -> Path:
    """Write the model into a folder, unless it is there. Returns the folder."""
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, **{letter: index + 2 for index, letter in enumerate(alphabet)}}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=heads * head_dim, intermediate_size=2 * heads * head_dim, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, max_position_embeddings=4096, bos_token_id=0,
        eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.device("cpu"):
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # larger weights than at the start of training: answers then depend on the prompt
            if parameter.dim() == 2:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    return folder

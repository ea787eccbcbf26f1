"""The shape of a decoder-only model, for measurements with random weights. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """A Llama-like model: pre-norm, grouped-query attention, gated MLP, bf16. The defaults are Llama-3.1-8B's.

    hidden, intermediate: widths of the residual stream and of the MLP. vocab: number of tokens in the vocabulary. Raises ValueError for
    impossible sizes.
    """

    name: str = "llama-3.1-8b"
    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    intermediate: int = 14_336
    vocab: int = 128_256

    def __post_init__(self) -> None:
        if min(self.layers, self.hidden, self.heads, self.kv_heads, self.head_dim, self.intermediate, self.vocab) < 1:
            raise ValueError(f"model {self.name}: all its sizes must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"model {self.name}: heads is {self.heads}; it must be a multiple of kv_heads, {self.kv_heads}")

    @property
    def spec(self) -> ModelSpec:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        parameters = float(self.layers * (attention + 3 * self.hidden * self.intermediate) + 2 * self.vocab * self.hidden)
        return ModelSpec(self.name, self.layers, self.kv_heads, self.head_dim, "bfloat16", self.hidden, self.heads, parameters, parameters)

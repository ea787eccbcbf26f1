"""What a worker tells its scheduler at start, and what two servers must have in common."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.codec.header import VERSION
from abkt.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Handshake:
    """Where a worker listens, and its fingerprint."""

    address: str
    fingerprint: str


def fingerprint(model: ModelSpec, block_tokens: int, tp: int) -> str:
    """The properties that both servers must share, in words: if they differ, the message names both."""
    kinds = "K and V" if model.kv_kinds == 2 else "one latent"
    return (
        f"{model.name}: {model.layers} layers, {model.kv_heads} kv heads of {model.head_dim}, {kinds}, {model.dtype}, "
        f"blocks of {block_tokens}, tp {tp}, codec {VERSION}"
    )

"""KV chunks of LMCache, [kinds, layers, tokens, hidden], as streams of the codec.

A store addresses chunks by the hash of their tokens, so equal chunks should be equal bytes. And LMCache asks for the size before it knows
the values. The fixed coder in uniform order has both properties; other coders are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from abkt.codec.cells import PASSES, Cells
from abkt.codec.codec import Codec
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

BLOCK_TOKENS = 16


@dataclass(slots=True)
class ChunkCodec:
    """Codes chunks at a fixed precision.

    Parameters
    ----------
    bits : bits per value.
    head_dim : width of a head; a chunk's hidden size is a multiple of it. MLA's chunks have one head of all.
    coder : only fixed.

    Raises
    ------
    ValueError : one line, for another coder, a precision that there is not, or a head of no width.
    """

    bits: int = 4
    head_dim: int = 128
    coder: str = "fixed"
    _codecs: dict[tuple[int, ...], Codec] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.coder != "fixed":
            raise ValueError(f"coder {self.coder!r} gives a size that depends on the values; LMCache's stores need coder fixed")
        if self.bits not in PASSES:
            raise ValueError(f"bits is {self.bits}; one of {', '.join(map(str, PASSES))} is possible")
        if type(self.head_dim) is not int or self.head_dim < 1:
            raise ValueError(f"head_dim is {self.head_dim!r}; it must be a whole number above 0")

    def size(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes of a chunk of this shape, whatever its values are, unless some cannot be coded."""
        return _size(self._layout(shape, dtype), int(shape[2]), self.bits)

    def encode(self, chunk: torch.Tensor) -> bytes:
        """The bytes of a chunk. Raises ValueError, one line, for values that cannot be coded, such as nan."""
        layout = self._layout(chunk.shape, chunk.dtype)
        pool, tokens = Pool(layout), chunk.shape[2]
        for start in range(0, tokens, BLOCK_TOKENS):
            part = chunk[:, :, start : start + BLOCK_TOKENS]
            split = part.reshape(*part.shape[:3], -1, layout.model.head_dim)  # [kinds, layers, tokens, heads, dim]
            pool.data[start // BLOCK_TOKENS, :, :, :, : part.shape[2]] = split.permute(1, 0, 3, 2, 4)
        stream = self._codec(layout).encode(pool, range(len(pool.data)), tokens, self.bits, "uniform")
        if stream.verbatim_cells:
            raise ValueError(
                f"{stream.verbatim_cells} parts of a chunk cannot be coded, such as values that are not finite; it is not stored"
            )
        return stream.prefix(stream.curve.finest)

    def decode(self, data: bytes | memoryview, chunk: torch.Tensor) -> None:
        """Write the KV in `data` into a chunk. Raises ValueError, one line, for damaged bytes, or those of another shape."""
        layout = self._layout(chunk.shape, chunk.dtype)
        pool, tokens = Pool(layout), chunk.shape[2]
        found = self._codec(layout).expand(memoryview(data), pool, range(len(pool.data)))
        if found.tokens != tokens:
            raise ValueError(f"the bytes hold {found.tokens} tokens; the chunk has {tokens}")
        for start in range(0, tokens, BLOCK_TOKENS):
            part = chunk[:, :, start : start + BLOCK_TOKENS]
            held = pool.data[start // BLOCK_TOKENS, :, :, :, : part.shape[2]]
            part.copy_(held.permute(1, 0, 3, 2, 4).reshape(part.shape))

    def _layout(self, shape: Sequence[int], dtype: torch.dtype) -> KVLayout:
        if len(shape) != 4 or shape[0] not in (1, 2):
            raise ValueError(f"a chunk of shape {tuple(shape)} is not [kinds, layers, tokens, hidden]")
        kinds, layers, tokens, hidden = (int(size) for size in shape)
        dim = self.head_dim if kinds == 2 else hidden
        if hidden % dim:
            raise ValueError(f"a hidden size of {hidden} is not a multiple of head_dim {dim}")
        model = ModelSpec("chunk", layers, hidden // dim, dim, str(dtype).removeprefix("torch."), kv_kinds=kinds)
        return KVLayout(model, -(-tokens // BLOCK_TOKENS), BLOCK_TOKENS)

    def _codec(self, layout: KVLayout) -> Codec:
        return self._codecs.setdefault(layout.shape, Codec(layout))


@lru_cache(maxsize=64)
def _size(layout: KVLayout, tokens: int, bits: int) -> int:
    """The size of a stream of this layout: that of random values, since it does not depend on them."""
    pool = Pool(layout)
    pool.data.copy_(torch.randn(layout.shape, generator=torch.Generator().manual_seed(0)))
    assert Cells(layout, tokens, 128, bits).passes
    return int(Codec(layout).encode(pool, range(layout.blocks), tokens, bits, "uniform").ends[-1])

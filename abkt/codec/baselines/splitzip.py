"""SplitZip-like lossless coding (arXiv 2605.01708): exponents of bfloat16 in 4 bits, with escapes; signs and mantissas as they are.

The 15 most frequent exponents of a (layer, K or V) have codes; the code 15 is followed, in a list of its own, by the exponent itself. With
no escape a value takes 12 of 16 bits, so the ratio is at most 1.33.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.bits import pack, packed_bytes, unpack

COMMON = 15


def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(exponents, signs and mantissas) of bfloat16 values, uint8 each. Raises ValueError for another dtype."""
    if x.dtype != torch.bfloat16:
        raise ValueError(f"KV is {x.dtype}; this lossless code splits bfloat16 only")
    bits = x.contiguous().view(torch.int16).int() & 0xFFFF
    return ((bits >> 7) & 0xFF).to(torch.uint8), ((bits >> 8) & 0x80 | bits & 0x7F).to(torch.uint8)


def joined(exponents: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """The inverse of `split`."""
    bits = (rest.int() & 0x80) << 8 | exponents.int() << 7 | rest.int() & 0x7F
    return torch.where(bits >= 1 << 15, bits - (1 << 16), bits).to(torch.int16).view(torch.bfloat16)


@dataclass(frozen=True)
class SplitZip(MessageBaseline):
    name: str = "splitzip"

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        exponents, rest = split(x)
        parts: list[torch.Tensor | bytes] = [rest]
        for layer, kind in np.ndindex(x.shape[:2]):
            e = exponents[layer, kind].flatten()
            common = torch.bincount(e.int(), minlength=256).argsort(descending=True, stable=True)[:COMMON]
            code_of = torch.full((256,), COMMON, dtype=torch.uint8)
            code_of[common] = torch.arange(COMMON, dtype=torch.uint8)
            codes = code_of[e.long()]
            escaped = e[codes == COMMON]
            parts += [common.to(torch.uint8), torch.tensor([len(escaped)], dtype=torch.int32), pack(codes, 4), escaped]
        return parts

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        rest, exponents = body.take(torch.uint8, *shape), torch.empty(shape, dtype=torch.uint8)
        size = torch.Size(shape[2:]).numel()
        for layer, kind in np.ndindex(shape[:2]):
            common, count = body.take(torch.uint8, COMMON), int(body.take(torch.int32, 1))
            codes = unpack(body.take(torch.uint8, packed_bytes(size, 4)), 4, (size,))
            if count != int((codes == COMMON).sum()):
                raise ValueError("message is damaged: it has another number of escapes than codes for them")
            found = torch.cat((common, torch.zeros(1, dtype=torch.uint8)))[codes.long()]
            found[codes == COMMON] = body.take(torch.uint8, count)
            exponents[layer, kind] = found.view(shape[2:])
        return joined(exponents, rest)

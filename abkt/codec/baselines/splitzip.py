"""SplitZip-like lossless coding (arXiv 2605.01708): exponents of bfloat16 in 4 bits, with escapes; signs and mantissas as they are.

The 16 most frequent exponents have codes, and a sparse list of (position, value) corrects the others, as in the paper. The paper's codebook
is calibrated offline; here each (layer, K or V) has its own, found in the message's KV, for 16 bytes. A position takes 2 bytes within its
chunk of 65,536 values, which is an assumption. With no escape a value takes 12 of 16 bits, so the ratio is at most 1.33.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.bits import pack, packed_bytes, unpack

COMMON = 16
CHUNK = 1 << 16  # values whose escapes share a count


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
            places = (codes == COMMON).nonzero()[:, 0]
            counts = torch.bincount(places // CHUNK, minlength=-(-len(e) // CHUNK)).to(torch.int32)
            codes[places] = 0
            within = (places % CHUNK).to(torch.int32).numpy().astype("<u2").tobytes()
            parts += [common.to(torch.uint8), counts, pack(codes, 4), within, e[places]]
        return parts

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        rest, exponents = body.take(torch.uint8, *shape), torch.empty(shape, dtype=torch.uint8)
        size = torch.Size(shape[2:]).numel()
        for layer, kind in np.ndindex(shape[:2]):
            common, counts = body.take(torch.uint8, COMMON), body.take(torch.int32, -(-size // CHUNK)).long()
            codes = unpack(body.take(torch.uint8, packed_bytes(size, 4)), 4, (size,))
            if int(counts.min()) < 0 or int(counts.max()) > CHUNK:
                raise ValueError("message is damaged: it has a number of escapes that is out of range")
            within = np.frombuffer(body.take_bytes(2 * int(counts.sum())), dtype="<u2").astype(np.int64)
            places = torch.from_numpy(within) + (torch.arange(len(counts)) * CHUNK).repeat_interleave(counts)
            if len(places) and int(places.max()) >= size:
                raise ValueError("message is damaged: an escape lies outside of its KV")
            found = common[codes.long()]
            found[places] = body.take(torch.uint8, len(places))
            exponents[layer, kind] = found.view(shape[2:])
        return joined(exponents, rest)

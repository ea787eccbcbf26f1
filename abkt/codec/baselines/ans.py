"""Lossless coding as nvCOMP's ANS does it for 16-bit floats: order-0 entropy coding of the exponents, signs and mantissas as they are.

nvCOMP codes chunks of 64 KiB with a table each; here a table serves a (layer, K or V) and travels with it, 2 bytes a symbol, so that less
is spent on tables than in nvCOMP. bfloat16 only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.baselines.splitzip import joined, split
from abkt.codec.rans import compiled as rans
from abkt.codec.rans.oracle import SHARES


def shares(counts: np.ndarray) -> np.ndarray:
    """Counts [256] as shares of SHARES, uint16: at least 1 for each symbol that occurs."""
    given = np.where(counts > 0, np.maximum(np.floor(counts / counts.sum() * SHARES), 1), 0).astype(np.int64)
    while excess := int(given.sum() - SHARES):
        at = int(np.argmax(given))
        given[at] -= min(excess, given[at] - 1) if excess > 0 else excess
    return given.astype(np.uint16)


@dataclass(frozen=True)
class Ans(MessageBaseline):
    name: str = "ans"

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        exponents, rest = split(x)
        parts: list[torch.Tensor | bytes] = [rest]
        for layer, kind in np.ndindex(x.shape[:2]):
            e = exponents[layer, kind].reshape(1, -1).numpy()
            table = shares(np.bincount(e[0], minlength=256))
            used = np.flatnonzero(table)
            stream = rans.encode(e, np.zeros_like(e), table[None])[0]
            head = (
                np.array([len(used) - 1], dtype=np.uint8).tobytes() + used.astype(np.uint8).tobytes() + table[used].astype("<u2").tobytes()
            )
            parts += [head, np.array([len(stream)], dtype="<i4").tobytes(), stream]
        return parts

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        rest, exponents = body.take(torch.uint8, *shape), torch.empty(shape, dtype=torch.uint8)
        size = torch.Size(shape[2:]).numel()
        for layer, kind in np.ndindex(shape[:2]):
            used = int(body.take(torch.uint8, 1)) + 1
            table = np.zeros((1, 256), dtype=np.uint16)
            symbols = np.frombuffer(body.take_bytes(used), dtype=np.uint8)
            table[0, symbols] = np.frombuffer(body.take_bytes(2 * used), dtype="<u2")
            count = int(body.take(torch.int32, 1))
            if count < 0 or int(table.sum()) != SHARES:
                raise ValueError("message is damaged: a size or a table is out of range")
            found = rans.decode([body.take_bytes(count)], size, np.zeros((1, size), dtype=np.uint8), table)
            exponents[layer, kind] = torch.from_numpy(np.ascontiguousarray(found)).view(shape[2:])
        return joined(exponents, rest)

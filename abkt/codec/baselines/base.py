"""The common interface of the published baselines, and what they share: gathering, the message, its checks, and scattering.

    header    magic, version, name | tokens | layers, kinds, kv_heads, head_dim, block tokens | dtype | shifted
    shifts    int16 for each (layer, kind), only if shifted: the power of two that its values were multiplied by
    body      the arrays that the baseline packs, one after another
    CRC-32    checksum of everything before it

Little-endian. A message decodes only into pools of its layout; the number of blocks may differ.

Shifts. Scales and zeros in float16 lose their digits below 6e-5 and end at 65,504, so at an amplitude of 1e-6 int8 would be worse than
int4. Where the largest value of a (layer, kind) is outside SAFE, its values are multiplied by a power of two, which is exact. Others are
coded as published.
"""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from abkt.codec.header import DTYPES
from abkt.kv.pool import Pool
from abkt.spec import KVLayout

MAGIC, VERSION = b"ABKB", 1
FIXED = struct.Struct("<4sB15sIHHHHHBB2x")
SAFE = 2.0**-6, 65_504.0  # largest values that are coded without a shift
CRC = struct.Struct("<I")
FRAME_BYTES = FIXED.size + CRC.size


class Baseline(Protocol):
    """A published KV codec, to compare with: one message holds the KV of a sequence, and is decoded whole.

    Parameters
    ----------
    name : name of the baseline and its setting, at most 15 characters; messages carry it.
    """

    @property
    def name(self) -> str: ...

    def encode(self, pool: Pool, table: Sequence[int], tokens: int) -> bytes:
        """Encode the first `tokens` tokens of a sequence as one message, which holds everything that decoding needs.

        Raises ValueError for a table that does not hold them, or KV that cannot be coded.
        """
        ...

    def expand(self, data: bytes, pool: Pool, table: Sequence[int]) -> None:
        """Write a message into the blocks `table`. Raises ValueError for damage or another layout; the pool is not changed then."""
        ...


class Body:
    """Reads the body of a message from its beginning."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._left = memoryview(data)

    def take(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """The next array. Raises ValueError if the body is too short."""
        count = torch.Size(shape).numel()
        raw = bytearray(self.take_bytes(count * dtype.itemsize))
        return torch.frombuffer(raw, dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)

    def take_bytes(self, size: int) -> bytes:
        """The next `size` bytes. Raises ValueError if the body is too short."""
        if size > len(self._left):
            raise ValueError(f"message is damaged: {size} bytes are expected and {len(self._left)} are left")
        part, self._left = bytes(self._left[:size]), self._left[size:]
        return part

    def finish(self) -> None:
        """Raises ValueError if bytes are left."""
        if len(self._left):
            raise ValueError(f"message is followed by {len(self._left)} bytes that do not belong to it")


class MessageBaseline(ABC):
    """A baseline that packs KV [layers, kinds, kv_heads, tokens, head_dim] as a whole. kind 0 is K, or the latent of MLA; 1 is V."""

    name: str

    @abstractmethod
    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        """Encode x (the pool's dtype, on the CPU, at least one token) as the arrays of the body, in the order of the wire."""

    @abstractmethod
    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The inverse of `pack`: a tensor [*shape] of any floating dtype. dtype: the dtype of the pool."""

    def encode(self, pool: Pool, table: Sequence[int], tokens: int) -> bytes:
        blocks = pool.check_table(table, tokens)[: pool.layout.blocks_for(tokens)]
        body: list[bytes] = []
        shifted = False
        if tokens:
            held = pool.data[torch.tensor(blocks, device=pool.data.device)].cpu()
            x = held.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)[..., :tokens, :].contiguous()
            shifts = shifts_of(x)
            shifted = bool(shifts.any())
            body = [_bytes(shifts)] if shifted else []
            body += [_bytes(part) for part in self.pack(times_power(x, shifts) if shifted else x)]
        data = b"".join([self._header(pool.layout, tokens, shifted), *body])
        return data + CRC.pack(zlib.crc32(data))

    def expand(self, data: bytes, pool: Pool, table: Sequence[int]) -> None:
        if len(data) < FRAME_BYTES:
            raise ValueError(f"message of {len(data)} bytes is cut; a header and a checksum take {FRAME_BYTES}")
        if CRC.unpack(data[-CRC.size :])[0] != zlib.crc32(data[: -CRC.size]):
            raise ValueError("message is damaged: its checksum does not match")
        tokens, shifted = (FIXED.unpack_from(data)[i] for i in (3, -1))
        ours = self._header(pool.layout, tokens, shifted == 1)
        if data[: FIXED.size] != ours:
            theirs = FIXED.unpack_from(data)
            raise ValueError(f"message {theirs[:3]} of layout {theirs[4:]} is not for {self.name} and layout {FIXED.unpack(ours)[4:]}")
        blocks = pool.check_table(table, tokens)[: pool.layout.blocks_for(tokens)]
        body = Body(memoryview(data)[FIXED.size : -CRC.size])
        _, layers, kinds, heads, size, dim = pool.layout.shape
        if not tokens:
            return body.finish()
        shifts = body.take(torch.int16, layers, kinds) if shifted else None
        x = self.restore(body, (layers, kinds, heads, tokens, dim), pool.dtype)
        body.finish()
        if shifts is not None:
            x = times_power(x, -shifts)
        if x.dtype == torch.float32 or x.dtype != pool.dtype:  # what a lossless code of 16 bits gives back stays as it is
            greatest = torch.finfo(pool.dtype).max
            x = x.clamp(-greatest, greatest)  # the end of the range rounds up to a value that the pool's dtype cannot hold
        at = torch.arange(tokens, device=pool.data.device)
        block = torch.tensor(blocks, device=pool.data.device)[at // size]
        pool.data[block, :, :, :, at % size] = x.permute(3, 0, 1, 2, 4).to(pool.data)

    def _header(self, layout: KVLayout, tokens: int, shifted: bool) -> bytes:
        _, layers, kinds, heads, size, dim = layout.shape
        if layout.model.dtype not in DTYPES:
            raise ValueError(f"KV of {layout.model.dtype} cannot be coded by {self.name}; {', '.join(DTYPES)} can")
        dtype = DTYPES.index(layout.model.dtype)
        return FIXED.pack(MAGIC, VERSION, self.name.encode(), tokens, layers, kinds, heads, dim, size, dtype, shifted)


def shifts_of(x: torch.Tensor) -> torch.Tensor:
    """The exponents of the powers of two that bring the largest value of each (layer, kind) into [1, 2), or 0 where it is safe, 0 or not
    finite. x: [layers, kinds, kv_heads, tokens, head_dim]. Returns [layers, kinds] int16."""
    most = x.float().abs().amax((2, 3, 4))
    least, greatest = SAFE
    outside = ((most < least) | (most > greatest)) & (most > 0) & most.isfinite()
    return torch.where(outside, 1 - torch.frexp(most).exponent, 0).to(torch.int16)


def times_power(x: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """x [layers, kinds, ...] times 2**exponents [layers, kinds], in x's dtype."""
    return torch.ldexp(x.double(), exponents.double()[:, :, None, None, None]).to(x.dtype)


def _bytes(part: torch.Tensor | bytes) -> bytes:
    if isinstance(part, bytes):
        return part
    flat = part.contiguous().reshape(-1)
    return np.asarray(flat.view(torch.uint8)).tobytes() if flat.numel() else b""

"""The lossless code with entropy-coded exponents, for links that are slower than a processor.

Sign and mantissa of a value are sent unchanged. Its exponent is taken relative to the most frequent exponent of its channel, since channels
differ in scale more than tokens do. The difference is coded with rANS (rans/oracle.py) and one table for all channels, made from the values
themselves.

KV [heads, tokens, dim] is one *piece*. Each of its streams holds one head and at most STREAM_TOKENS tokens:

    bases     [heads, dim] uint8, the exponent that symbol 0 stands for
    table     [256] uint16, shares of 4,096
    sizes     [streams] uint32, bytes of each stream
    streams
    rest      for float32 the low 16 bits of all values; then the low byte of sign and mantissa, if they have 8 bits or more; then
              the bits above it, packed as planes of 4, 2 and 1 bits (codec/bits.py)

Little-endian. Bit patterns come back as they were, NaN payloads and signed zeros too.
"""

from __future__ import annotations

import numpy as np
import torch

from abkt.codec.bits import pack, packed_bytes, unpack
from abkt.codec.lossless.oracle import INTEGER, MANTISSA, joined, lanes_of, split
from abkt.codec.rans import compiled as rans_fast
from abkt.codec.rans.oracle import shares_of

STREAM_TOKENS = 512
SYMBOLS = 256


def encode(x: torch.Tensor) -> bytes:
    """x: [heads, tokens, dim] of bfloat16, float16, float8_e4m3fn or float32, on the CPU. Raises ValueError for another dtype."""
    if x.dtype not in MANTISSA or x.dim() != 3:
        raise ValueError(
            f"no lossless code for {tuple(x.shape)} of {x.dtype}; take [heads, tokens, dim] of {', '.join(map(str, MANTISSA))}"
        )
    exponent, rest = (part.numpy() for part in split(lanes_of(x), x.dtype))
    bases = _bases(exponent)
    symbols = ((exponent - bases[:, None]) & 255).astype(np.uint8)
    table = shares_of(np.bincount(symbols.reshape(-1), minlength=SYMBOLS)[None])
    streams = [s for part in _parts(symbols) for s in rans_fast.encode(part, np.zeros_like(part), table)]
    sizes = np.array([len(s) for s in streams], dtype="<u4")
    return b"".join((bases.tobytes(), table.astype("<u2").tobytes(), sizes.tobytes(), *streams, *_rest(x, rest)))


def decode(data: memoryview, heads: int, tokens: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `encode`, bit for bit. Raises ValueError if the bytes are found not to be those of `encode`."""
    left = _Reader(data)
    bases = left.array(np.uint8, heads, dim)
    table = left.array("<u2", 1, SYMBOLS).astype(np.uint16)
    shape = np.zeros((heads, tokens, dim), dtype=np.uint8)
    parts = _parts(shape)
    sizes = left.array("<u4", sum(len(part) for part in parts)).tolist()
    streams, symbols = [left.take(size) for size in sizes], []
    for part in parts:
        here, streams = streams[: len(part)], streams[len(part) :]
        symbols.append(rans_fast.decode(here, part.shape[1], np.zeros_like(part), table).reshape(heads, -1, dim))
    found = np.concatenate(symbols, 1) if symbols else shape
    exponent = (found.astype(np.int32) + bases[:, None]) & 255
    return _from_rest(left, torch.from_numpy(exponent), dtype)


def _bases(exponent: np.ndarray) -> np.ndarray:
    """The most frequent exponent of each channel, [heads, dim] uint8."""
    heads, _, dim = exponent.shape
    channel = np.arange(heads)[:, None, None] * dim + np.arange(dim)
    counts = np.bincount((channel * 256 + exponent).reshape(-1), minlength=heads * dim * 256).reshape(heads, dim, 256)
    return counts.argmax(2).astype(np.uint8)


def _parts(symbols: np.ndarray) -> list[np.ndarray]:
    """Streams of equal length, [streams, n] each: full spans of tokens of every head, then the remaining tokens."""
    heads, tokens, _ = symbols.shape
    full = tokens // STREAM_TOKENS * STREAM_TOKENS
    whole = [np.ascontiguousarray(symbols[:, at : at + STREAM_TOKENS]).reshape(heads, -1) for at in range(0, full, STREAM_TOKENS)]
    return whole + ([np.ascontiguousarray(symbols[:, full:]).reshape(heads, -1)] if full < tokens else [])


def _planes(dtype: torch.dtype) -> tuple[int, ...]:
    """Widths in which sign and mantissa are packed, the lowest bits first."""
    bits = MANTISSA[dtype] + 1
    return ((8,) if bits >= 8 else ()) + tuple(width for width in (4, 2, 1) if bits % 8 & width)


def _rest(x: torch.Tensor, rest: np.ndarray) -> list[bytes]:
    out = []
    if x.dtype == torch.float32:
        out.append(np.ascontiguousarray(x.contiguous().view(torch.int16).numpy().reshape(-1, 2)[:, 0]).tobytes())
    at = 0
    for width in _planes(x.dtype):
        plane = ((rest >> at) & ((1 << width) - 1)).astype(np.uint8)
        out.append(pack(torch.from_numpy(plane), width).numpy().tobytes())
        at += width
    return out


def _from_rest(left: _Reader, exponent: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    count = exponent.numel()
    low = left.array("<u2", count) if dtype == torch.float32 else None
    rest, at = torch.zeros(exponent.shape, dtype=torch.int32), 0
    for width in _planes(dtype):
        packed = torch.from_numpy(left.array(np.uint8, packed_bytes(count, width)).copy())
        rest |= unpack(packed, width, tuple(exponent.shape)).to(torch.int32) << at
        at += width
    left.finish()
    bits = joined(exponent, rest, dtype)
    if low is not None:
        bits = (bits << 16) | torch.from_numpy(low.astype(np.int32)).view(bits.shape)
    return bits.to(INTEGER[dtype.itemsize]).view(dtype)


class _Reader:
    """Reads bytes from their beginning."""

    def __init__(self, data: memoryview) -> None:
        self._left = data

    def take(self, size: int) -> bytes:
        if size > len(self._left):
            raise ValueError(f"lossless piece is damaged: {size} bytes are expected and {len(self._left)} are left")
        part, self._left = bytes(self._left[:size]), self._left[size:]
        return part

    def array(self, dtype: str | type, *shape: int) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return np.frombuffer(self.take(size), dtype=dtype).reshape(shape)

    def finish(self) -> None:
        if len(self._left):
            raise ValueError(f"lossless piece is followed by {len(self._left)} bytes that do not belong to it")

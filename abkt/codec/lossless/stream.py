"""KV of a sequence without loss, as one message: it is decoded whole or not at all.

    header    magic, version, coder | tokens, layers, kinds, kv_heads, block tokens, head_dim | dtype | CRC-32 of the body
              | CRC-32 of the header
    body      fixed: the full blocks as units of the lossless code (wire.py), one for each (block, layer, kind)
              entropy: bytes of each piece, uint32, then the pieces (entropy.py), one for each (layer, kind), of the full blocks
              then the tokens of a last block that is not full, verbatim: [layer, kind, kv_head, token, head_dim]

The fixed code packs bits and takes 0.71 of the bytes of bfloat16 KV at best; entropy-coded exponents take about 0.65 of
them, and far more time. With the fixed code, all blocks travel verbatim if K or V of a block is not a multiple of 16 values. Little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from abkt.codec.coder import CODERS
from abkt.codec.lossless import entropy as lossless_entropy
from abkt.codec.lossless.codec import LosslessCodec
from abkt.codec.lossless.oracle import ALIGNMENT, INTEGER
from abkt.codec.lossless.wire import DTYPES
from abkt.kv.pool import Pool
from abkt.policy.view import CoderName

MAGIC = b"ABKL"
VERSION = 1
FIXED = struct.Struct("<4sHBxIHHHHHBxI")
HEADER_BYTES = FIXED.size + 4


def encode(pool: Pool, table: Sequence[int], tokens: int, coder: CoderName = "fixed") -> bytes:
    """Code the first `tokens` tokens of a sequence.

    Parameters
    ----------
    pool, table : where the sequence lies; the pool must be on the CPU.
    tokens : how many tokens are coded.
    coder : fixed packs bits; entropy needs fewer bytes, but takes far longer.

    Returns
    -------
    The message.

    Raises
    ------
    ValueError : for a table that does not hold the tokens, an unknown coder, or a pool that is not on the CPU.
    """
    if coder not in BLOCK_CODERS:
        raise ValueError(f"coder {coder} is unknown; one of {', '.join(BLOCK_CODERS)} is possible")
    blocks, full = _blocks(pool, table, tokens)
    body = (BLOCK_CODERS[coder].encode(pool, blocks[:full]) if full else b"") + _bytes(_tail(pool, blocks, tokens))
    return _header(pool, tokens, coder, zlib.crc32(body)) + body


def expand(data: bytes | memoryview, pool: Pool, table: Sequence[int]) -> int:
    """Write a message into the blocks `table` of a pool of the same layout, whatever its number of blocks.

    Returns its number of tokens. Raises ValueError for damage, another layout, or a table that is too short; the pool is not changed then.
    """
    view = memoryview(data).cast("B")
    tokens, coder = _read_header(view, pool)
    blocks, full = _blocks(pool, table, tokens)
    body = view[HEADER_BYTES:]
    tail = _tail(pool, blocks, tokens)
    tail_bytes = tail.numel() * tail.element_size()
    if len(body) < tail_bytes:
        raise ValueError(f"message of {len(view)} bytes is cut")
    coded = body[: len(body) - tail_bytes]
    if full:
        BLOCK_CODERS[coder].expand(coded, pool, blocks[:full])
    if tail_bytes:
        tail.copy_(torch.frombuffer(bytearray(body[len(coded) :]), dtype=pool.dtype).view(tail.shape))
    return tokens


def _blocks(pool: Pool, table: Sequence[int], tokens: int) -> tuple[list[int], int]:
    """The blocks that hold the tokens, and how many of them are full."""
    if pool.data.device.type != "cpu":
        raise ValueError(f"pool {pool.layout.shape} is on {pool.data.device}; a lossless message is made on the CPU")
    return pool.check_table(table, tokens)[: pool.layout.blocks_for(tokens)], tokens // pool.layout.block_tokens


def _unit(pool: Pool) -> int:
    """How many values, which are adjacent, the K or the V of one layer has in a block."""
    _, _, _, heads, size, dim = pool.layout.shape
    return heads * size * dim


def _units(pool: Pool, blocks: list[int]) -> tuple[torch.Tensor, int, int]:
    """Where units begin, their length, and how many lie in a block."""
    groups, n = pool.layout.shape[1] * pool.layout.shape[2], _unit(pool)
    return (torch.tensor(blocks)[:, None] * groups * n + torch.arange(groups) * n).reshape(-1), n, groups


def _encode_units(pool: Pool, blocks: list[int]) -> bytes:
    if _unit(pool) % ALIGNMENT:
        return _bytes(pool.data[torch.tensor(blocks)])
    codec = LosslessCodec.best()
    starts, n, groups = _units(pool, blocks)
    return codec.pack(codec.encode(pool.data, starts, n, groups))


def _expand_units(coded: memoryview, pool: Pool, blocks: list[int]) -> None:
    if _unit(pool) % ALIGNMENT:
        values = torch.frombuffer(bytearray(coded), dtype=pool.dtype)
        pool.data[torch.tensor(blocks)] = values.view(len(blocks), *pool.layout.shape[1:])
        return
    codec = LosslessCodec.best()
    starts, n, _ = _units(pool, blocks)
    codec.decode(codec.unpack(coded, len(starts), n, pool.dtype), pool.data, starts)


def _encode_pieces(pool: Pool, blocks: list[int]) -> bytes:
    held = (
        pool.data[torch.tensor(blocks)].permute(1, 2, 3, 0, 4, 5).flatten(3, 4).contiguous()
    )  # [layers, kinds, kv_heads, tokens, head_dim]
    pieces = [lossless_entropy.encode(held[layer, kind]) for layer, kind in np.ndindex(*held.shape[:2])]
    return b"".join((np.array([len(piece) for piece in pieces], dtype="<u4").tobytes(), *pieces))


def _expand_pieces(coded: memoryview, pool: Pool, blocks: list[int]) -> None:
    _, layers, kinds, heads, size, dim = pool.layout.shape
    at = 4 * layers * kinds
    if len(coded) < at:
        raise ValueError(f"message is cut: {len(coded)} bytes of pieces")
    ends = np.frombuffer(coded[:at], dtype="<u4").astype(np.int64).cumsum() + at
    if ends[-1] != len(coded):
        raise ValueError(f"message is damaged: its pieces have {ends[-1]} bytes, not {len(coded)}")
    starts = [at, *ends[:-1].tolist()]
    pieces = [
        lossless_entropy.decode(coded[a:b], heads, len(blocks) * size, dim, pool.dtype) for a, b in zip(starts, ends.tolist(), strict=True)
    ]
    whole = torch.stack(pieces).view(layers, kinds, heads, len(blocks), size, dim)
    pool.data[torch.tensor(blocks)] = whole.permute(3, 0, 1, 2, 4, 5)


class BlockCoder(NamedTuple):
    """How the full blocks of a sequence, at least one, become bytes, and are written again."""

    encode: Callable[[Pool, list[int]], bytes]
    expand: Callable[[memoryview, Pool, list[int]], None]


BLOCK_CODERS: dict[CoderName, BlockCoder] = {
    "fixed": BlockCoder(_encode_units, _expand_units),
    "entropy": BlockCoder(_encode_pieces, _expand_pieces),
}


def _tail(pool: Pool, blocks: list[int], tokens: int) -> torch.Tensor:
    """The tokens of a last block that is not full, as a view of the pool."""
    left = tokens % pool.layout.block_tokens
    return pool.data[blocks[-1], :, :, :, :left] if left else pool.data[:0]


def _bytes(x: torch.Tensor) -> bytes:
    return x.contiguous().view(INTEGER[x.element_size()]).numpy().tobytes()


def _fields(pool: Pool) -> tuple[int, ...]:
    _, layers, kinds, heads, size, dim = pool.layout.shape
    return layers, kinds, heads, size, dim, DTYPES.index(pool.dtype)


def _header(pool: Pool, tokens: int, coder: CoderName, crc: int) -> bytes:
    fixed = FIXED.pack(MAGIC, VERSION, CODERS.index(coder), tokens, *_fields(pool), crc)
    return fixed + struct.pack("<I", zlib.crc32(fixed))


def _read_header(view: memoryview, pool: Pool) -> tuple[int, CoderName]:
    if len(view) < HEADER_BYTES:
        raise ValueError(f"message of {len(view)} bytes is cut; its header alone is {HEADER_BYTES}")
    magic, version, coder, tokens, *fields, crc = FIXED.unpack_from(view)
    if magic != MAGIC:
        raise ValueError(f"not a lossless message: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise ValueError(f"lossless message of version {version}; this codec reads version {VERSION}")
    if zlib.crc32(view[: FIXED.size]) != struct.unpack_from("<I", view, FIXED.size)[0]:
        raise ValueError("header of the lossless message is damaged: its checksum does not match")
    if tuple(fields) != _fields(pool):
        raise ValueError(
            f"lossless message holds blocks {tuple(fields[:5])} (dtype {fields[5]}); the pool has {_fields(pool)[:5]} of {pool.dtype}"
        )
    if coder >= len(CODERS):
        raise ValueError(f"lossless message has the unknown coder {coder}")
    if zlib.crc32(view[HEADER_BYTES:]) != crc:
        raise ValueError("lossless message is damaged or cut: its checksum does not match")
    return tokens, CODERS[coder]

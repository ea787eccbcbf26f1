"""KV of a sequence without loss: one message, whole or not at all.

    header    magic, version, coder | tokens, layers, kinds, kv_heads, block tokens, head_dim | dtype | CRC-32 of the body | CRC-32 of these
    body      fixed: the full blocks as units of the lossless code (lossless/wire.py), one each (block, layer, kind)
              entropy: bytes of each piece, uint32, then the pieces (lossless/entropy.py), one each (layer, kind), of the full blocks
              then the tokens that fill no block, as they are: [layer, kind, kv_head, token, head_dim]

The fixed code moves at the speed of memory and takes 0.71 of bfloat16 KV at best; coded exponents take about 0.65, and far longer.
Blocks whose K or V is no multiple of 16 values travel as they are, all of them. Little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

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
    """The first `tokens` tokens of a sequence. Raises ValueError for a table that does not hold them, an unknown coder, or a pool that is
    not on the CPU."""
    if coder not in CODERS:
        raise ValueError(f"coder {coder} is unknown; one of {', '.join(CODERS)} is possible")
    blocks, full = _blocks(pool, table, tokens)
    parts: list[bytes] = []
    if full and coder == "entropy":
        held = _held(pool, blocks[:full])
        pieces = [lossless_entropy.encode(held[layer, kind]) for layer, kind in np.ndindex(*held.shape[:2])]
        parts = [np.array([len(piece) for piece in pieces], dtype="<u4").tobytes(), *pieces]
    elif full and _unit(pool) % ALIGNMENT == 0:
        codec = LosslessCodec.best()
        starts, n, groups = _units(pool, blocks[:full])
        parts = [codec.pack(codec.encode(pool.data, starts, n, groups))]
    elif full:
        parts = [_bytes(pool.data[torch.tensor(blocks[:full])])]
    body = b"".join((*parts, _bytes(_tail(pool, blocks, tokens))))
    return _header(pool, tokens, coder, zlib.crc32(body)) + body


def expand(data: bytes | memoryview, pool: Pool, table: Sequence[int]) -> int:
    """Write a message into the blocks `table` of a pool of the same layout (whatever its number of blocks); returns its tokens.

    Raises ValueError for damage, another layout, or a table that is too short; the pool is untouched then.
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
    if full and coder == "entropy":
        _put_pieces(coded, pool, blocks[:full])
    elif full and _unit(pool) % ALIGNMENT == 0:
        starts, n, _ = _units(pool, blocks[:full])
        codec = LosslessCodec.best()
        units = codec.unpack(coded, len(starts), n, pool.dtype)
        codec.decode(units, pool.data, starts)
    elif full:
        values = torch.frombuffer(bytearray(coded), dtype=pool.dtype)
        pool.data[torch.tensor(blocks[:full])] = values.view(full, *pool.layout.shape[1:])
    if tail_bytes:
        tail.copy_(torch.frombuffer(bytearray(body[len(coded) :]), dtype=pool.dtype).view(tail.shape))
    return tokens


def _blocks(pool: Pool, table: Sequence[int], tokens: int) -> tuple[list[int], int]:
    """The blocks that hold the tokens, and how many of them are full."""
    if pool.data.device.type != "cpu":
        raise ValueError(f"pool {pool.layout.shape} is on {pool.data.device}; the lossless message is made on the CPU")
    return pool.check_table(table, tokens)[: pool.layout.blocks_for(tokens)], tokens // pool.layout.block_tokens


def _unit(pool: Pool) -> int:
    """Values of K or V of a layer in one block, which lie together."""
    _, _, _, heads, size, dim = pool.layout.shape
    return heads * size * dim


def _units(pool: Pool, blocks: list[int]) -> tuple[torch.Tensor, int, int]:
    """Where units begin, their length, and how many lie in a block."""
    groups, n = pool.layout.shape[1] * pool.layout.shape[2], _unit(pool)
    return (torch.tensor(blocks)[:, None] * groups * n + torch.arange(groups) * n).reshape(-1), n, groups


def _held(pool: Pool, blocks: list[int]) -> torch.Tensor:
    """[layers, kinds, kv_heads, tokens, head_dim], copied."""
    return pool.data[torch.tensor(blocks)].permute(1, 2, 3, 0, 4, 5).flatten(3, 4).contiguous()


def _put_pieces(coded: memoryview, pool: Pool, blocks: list[int]) -> None:
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
        raise ValueError(f"no lossless message: it begins with {magic!r}, not {MAGIC!r}")
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

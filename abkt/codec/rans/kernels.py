"""rANS in Triton, with the bytes of rans/oracle.py: a program codes several streams, each in eight neighbouring threads, so four per warp.

A step codes one symbol of every lane. The place of its word in the stream is a count over the lanes, within the eight threads: three
exchanges and no barrier. Division by a share is a multiplication with its inverse, corrected by 1 where it is too small. Tables are read
through the first-level cache. Streams of a program may have different lengths; those that have ended wait for the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

LANES = tl.constexpr(8)  # as in rans/oracle.py, like the next three
SHARE_BITS = tl.constexpr(12)
SHARES = tl.constexpr(4096)
LEAST = tl.constexpr(1 << 16)
STATE_WORDS = tl.constexpr(16)


@triton.jit
def counted(which):
    """How many lanes of a stream are set in `which` [streams, LANES] bool: before each lane, [streams, LANES] int32, and in all, [streams]
    int32.

    One sum gives both: lane i adds 1 to the nibbles from i on, so nibble i counts the lanes up to i, at most 8.
    """
    lane = tl.arange(0, LANES)[None, :]
    nibbles = tl.sum(tl.where(which, tl.full((1, LANES), 0x11111111, tl.uint32) << (4 * lane), 0).to(tl.uint32), 1)
    before = ((nibbles[:, None] >> (4 * lane)) & 15).to(tl.int32) - which.to(tl.int32)
    return before, (nibbles >> 28).to(tl.int32)


@triton.jit
def put(x, entry, held, slot, at):
    """Code a symbol of every lane that is `held`. x: states, [streams, LANES] uint32. entry: int64 there, of RansTables.coding. slot:
    pointers to 16-bit words, [streams]; at: the place of the last word there, [streams] int32. Returns the new x and at.

    Words that do not fit the slot are counted, not written.
    """
    share, start = (entry & 0xFFFF).to(tl.uint32), ((entry >> 16) & 0xFFFF).to(tl.uint32)
    full = held & ((x >> 20) >= share)
    before, count = counted(full)
    at -= count
    place = at[:, None] + before
    tl.store(slot[:, None] + place, (x & 0xFFFF).to(tl.uint16), mask=full & (place >= 0))
    left = tl.where(full, x >> 16, x)
    quotient = tl.umulhi(left, (entry >> 32).to(tl.uint32))
    quotient += (left - quotient * share >= share).to(tl.uint32)
    return tl.where(held, left + quotient * (SHARES - share) + start, x), at


@triton.jit
def put_states(x, some, slot, at):
    """Write the states before the words of a stream, if it has symbols: `some` [streams] bool. Returns the new `at`."""
    at -= tl.where(some, STATE_WORDS, 0)
    place = at[:, None] + 2 * tl.arange(0, LANES)[None, :]
    there = (some & (at >= 0))[:, None]
    tl.store(slot[:, None] + place, (x & 0xFFFF).to(tl.uint16), mask=there)
    tl.store(slot[:, None] + place + 1, (x >> 16).to(tl.uint16), mask=there)
    return at


@triton.jit
def first_states(stream, size, some):
    """The states at the beginning of streams of `size` bytes, at pointers `stream`; both [streams]. some: [streams] bool, which streams to
    read.

    Returns states [streams, LANES] uint32, the number of words after them [streams] int32, and which are damaged [streams] bool.
    """
    good = some & (size >= 2 * STATE_WORDS) & (size % 2 == 0)
    at = stream[:, None] + 4 * tl.arange(0, LANES)[None, :]
    x = tl.zeros((stream.shape[0], LANES), tl.uint32)
    for byte in tl.static_range(4):
        x |= tl.load(at + byte, mask=good[:, None], other=0).to(tl.uint32) << (8 * byte)
    low = tl.max(((x < LEAST) & good[:, None]).to(tl.int32), 1) > 0
    return x, tl.where(good, (size // 2).to(tl.int32) - STATE_WORDS, 0), (some & ~good) | low


@triton.jit
def step_back(x, share, place, held, words_at, words, read):
    """Decode a symbol in every lane that is `held`: its interval has `share`, and the state is at `place` in it, [streams, LANES] uint32.
    words_at: pointers to the bytes of the words; words, read: how many words there are, and how many have been read; all [streams]. Returns
    the new x and read. A word beyond the end is 0, and counts as read.
    """
    left = (x >> SHARE_BITS) * share + place
    low = held & (left < LEAST)
    before, count = counted(low)
    at = read[:, None] + before
    there = low & (at < words[:, None])
    byte = words_at[:, None] + 2 * at
    word = tl.load(byte, mask=there, other=0).to(tl.uint32) | (tl.load(byte + 1, mask=there, other=0).to(tl.uint32) << 8)
    return tl.where(held, tl.where(low, (left << 16) | word, left), x), read + count


@triton.jit
def ended(x, words, read):
    """Whether streams ended at the initial state, with nothing left to read: [streams]."""
    return (read == words) & (tl.max((x != LEAST).to(tl.int32), 1) == 0)


@triton.jit
def encode_streams(symbols, contexts, table, slots, sizes, streams, n, rows, alphabet, capacity, STREAMS: tl.constexpr):
    """Encode streams. slots: 16-bit words [streams, capacity]; a stream is written to the end of its slot. sizes: int64 [streams], bytes:
    above 2 * capacity for a stream that does not fit, -1 for a stream with a symbol that has no share. symbols, contexts: uint8 [streams,
    n]. table: RansTables.coding."""
    stream, lane = tl.program_id(0) * STREAMS + tl.arange(0, STREAMS), tl.arange(0, LANES)[None, :]
    there = stream < streams
    slot, first = slots + stream.to(tl.int64) * capacity, stream.to(tl.int64)[:, None] * n
    x = tl.full((STREAMS, LANES), LEAST, tl.uint32)
    at = tl.zeros((STREAMS,), tl.int32) + capacity
    absent = tl.zeros((STREAMS, LANES), tl.int32)
    steps = (n + LANES - 1) // LANES
    for done in range(steps):
        i = (steps - 1 - done) * LANES + lane
        held = there[:, None] & (i < n)
        symbol = tl.load(symbols + first + i, mask=held, other=0).to(tl.int32)
        context = tl.load(contexts + first + i, mask=held, other=0).to(tl.int32)
        known = held & (symbol < alphabet) & (context < rows)
        entry = tl.load(table + context * alphabet + symbol, mask=known, other=0)
        absent |= (held & ((entry & 0xFFFF) == 0)).to(tl.int32)
        x, at = put(x, entry, held, slot, at)
    at = put_states(x, there, slot, at)
    size = tl.where(tl.max(absent, 1) > 0, -1, 2 * (capacity - at))
    tl.store(sizes + stream, size.to(tl.int64), mask=there)


@triton.jit
def decode_streams(
    data, length, offsets, sizes, contexts, owner, table, symbols, damaged, streams, n, rows, alphabet, STREAMS: tl.constexpr
):
    """Decode streams. data: `length` bytes, in which stream i has sizes[i] bytes at offsets[i]. owner, table: RansTables.owner and
    .intervals. damaged: uint8 [streams]. Nothing outside of a stream is read, whatever its bytes are. contexts, symbols: uint8 [streams,
    n]."""
    stream, lane = tl.program_id(0) * STREAMS + tl.arange(0, STREAMS), tl.arange(0, LANES)[None, :]
    there = stream < streams
    offset, size = tl.load(offsets + stream, mask=there, other=0), tl.load(sizes + stream, mask=there, other=0)
    inside = there & (offset >= 0) & (size >= 0) & (offset <= length - size)
    x, words, bad = first_states(data + offset, size, inside)
    first, words_at = stream.to(tl.int64)[:, None] * n, data + offset + 2 * STATE_WORDS
    read = tl.zeros((STREAMS,), tl.int32)
    foreign = tl.zeros((STREAMS, LANES), tl.int32)
    for step in range((n + LANES - 1) // LANES):
        i = step * LANES + lane
        held = there[:, None] & (i < n)
        context = tl.load(contexts + first + i, mask=held, other=0).to(tl.int32)
        known = held & (context < rows)
        share = (x & (SHARES - 1)).to(tl.int32)
        symbol = tl.load(owner + context * SHARES + share, mask=known, other=0).to(tl.int32)
        interval = tl.load(table + context * alphabet + symbol, mask=known, other=0)
        foreign |= (held & ~known).to(tl.int32)
        place = share - (interval >> 16)
        x, read = step_back(x, (interval & 0xFFFF).to(tl.uint32), place.to(tl.uint32), held, words_at, words, read)
        tl.store(symbols + first + i, symbol.to(tl.uint8), mask=held)
    bad |= ~inside | ~ended(x, words, read) | (tl.max(foreign, 1) > 0)
    tl.store(damaged + stream, bad.to(tl.uint8), mask=there)


@triton.jit
def join_streams(slots, sizes, ends, body, capacity, BYTES: tl.constexpr):
    """Join streams, which lie at the ends of their slots of `capacity` bytes. ends: int64 [streams], running sums of sizes. body: uint8."""
    stream = tl.program_id(0).to(tl.int64)
    size = tl.load(sizes + stream)
    begin, to = slots + (stream + 1) * capacity - size, body + tl.load(ends + stream) - size
    for done in range(0, size.to(tl.int32), BYTES):
        at = done + tl.arange(0, BYTES)
        tl.store(to + at, tl.load(begin + at, mask=at < size), mask=at < size)

"""The lossless code in Triton, for 16-bit dtypes, with the bytes of oracle.py. A program codes one unit where it lies in the pool.

A thread holds 8 lanes of each of a tile's 16 parts as 32-bit words of two lanes, so it reads and writes 16 bytes at a time, and packing is
elementwise between words. It keeps one bit per value that says whether the value is escaped. One prefix sum over a program's threads
places their lists of escapes, and each thread then handles its escapes one by one. Few values are escaped; giving each of the 128 values of
a thread a place of its own would double the work.

A unit is read once and its fixed part written once, in place; only tails, a few percent, are written to slots and then moved together.
Nothing waits for the GPU: sizes stay there. Encoding needs memory for the worst case, since lengths follow from the data.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _chunks(N: tl.constexpr, ROWS: tl.constexpr):
    """For each thread's row: its tile, its first lane there, and lanes and values of that tile. Rows beyond the unit have 0 values."""
    row = tl.arange(0, ROWS)
    tile = row // 32
    if N % 4096 == 0:
        lanes = tl.full((ROWS,), 256, tl.int32)
        values = tl.where(tile * 4096 < N, 4096, 0)
    else:
        values = tl.minimum(tl.maximum(N - tile * 4096, 0), 4096)
        lanes = (values + 127) // 128 * 8
    return tile, row % 32 * 8, lanes, values


@triton.jit
def _part(lane, lanes, values, P):
    """Which rows have values of part P."""
    return ((lane < lanes) & (P * lanes + lane < values))[:, None]


@triton.jit
def _words(tile, lane, lanes, P):
    """Where the words of part P are in the unit, [rows, 4]."""
    return (tile * 2048 + (P * lanes + lane) // 2)[:, None] + tl.arange(0, 4)[None, :]


@triton.jit
def _line(tile, lane, lanes, ROW, LINES: tl.constexpr):
    """Where the words of a row of the format are in the fixed part, [rows, 4]: a tile is LINES rows of `lanes`, all but the last of 256."""
    return (tile * (LINES * 128) + (ROW * lanes + lane) // 2)[:, None] + tl.arange(0, 4)[None, :]


@triton.jit
def _ones(x):
    """How many bits of each word are set."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    return ((((x + (x >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24) & 255


@triton.jit
def _with(rows, which: tl.constexpr, bits):
    """The tuple with bits set in element `which`."""
    changed = ()
    for i in tl.static_range(len(rows)):
        if i == which:
            changed = changed + (rows[i] | bits,)  # type: ignore[assignment]  # noqa: RUF005
        else:
            changed = changed + (rows[i],)  # type: ignore[assignment]  # noqa: RUF005
    return changed


@triton.jit
def _lists(escapes):
    """For bits [rows, 4] of escapes: where each row's list begins, its length, the longest length, the total, and each row's four words."""
    each = tl.sum(_ones(escapes), 1)
    column = tl.arange(0, 4)[None, :]
    words = ()
    for j in tl.static_range(4):
        words = words + (tl.sum(tl.where(column == j, escapes, 0), 1),)  # type: ignore[assignment]  # noqa: RUF005
    return tl.cumsum(each, 0) - each, each, tl.max(each, 0), tl.sum(each, 0), words


@triton.jit
def _next(words):
    """The lowest bit of the first word that has one, [rows]: its part, its lane among 8, and the words without it."""
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    now = tl.where(w0 != 0, w0, tl.where(w1 != 0, w1, tl.where(w2 != 0, w2, w3)))
    which = tl.where(w0 != 0, 0, tl.where(w1 != 0, 2, tl.where(w2 != 0, 4, 6)))
    left = now & (now - 1)
    bit = (((now & -now).to(tl.float32).to(tl.int32, bitcast=True) >> 23) & 255) - 127  # a power of two is its exponent
    w0, w1 = tl.where(which == 0, left, w0), tl.where(which == 2, left, w1)
    w2, w3 = tl.where(which == 4, left, w2), tl.where(which == 6, left, w3)
    return bit & 15, which + ((bit >> 4) & 1), (w0, w1, w2, w3)


@triton.jit
def _code(x, base, MANTISSA: tl.constexpr, WIDTH: tl.constexpr):
    """Codes of two lanes, and 1 where they are escaped."""
    exponents: tl.constexpr = ((1 << (15 - MANTISSA)) - 1) * 0x10001
    limit: tl.constexpr = (1 << WIDTH) - 1
    place = (((x >> MANTISSA) & exponents) + (256 - base) * 0x10001) & 0x00FF00FF
    escaped = ((place + (256 - limit) * 0x10001) >> 8) & 0x00010001
    return (place | (escaped * limit)) & (limit * 0x10001), escaped


@triton.jit
def encode_units(
    data, starts, bases, fixed, slots, sizes, groups,
    N: tl.constexpr, ROWS: tl.constexpr, MANTISSA: tl.constexpr, WIDTH: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """data, fixed, slots: words of 32 bits. fixed: [units, FIXED / 4]. slots: [units, (2 * N - FIXED) / 4], for tails. sizes: int64."""
    unit = tl.program_id(0).to(tl.int64)
    values_at = data + tl.multiple_of(tl.load(starts + unit) // 2, 8)
    base = tl.load(bases + unit % groups).to(tl.int32)
    spare: tl.constexpr = 2 * N - FIXED
    bits: tl.constexpr = MANTISSA - 7 + WIDTH  # of a head
    lines: tl.constexpr = 8 + bits
    fraction: tl.constexpr = ((1 << MANTISSA) - 1) * 0x10001
    sign: tl.constexpr = (1 << MANTISSA) * 0x10001
    above: tl.constexpr = ((1 << (MANTISSA - 7)) - 1) * 0x10001  # mantissa and sign beyond their low byte
    tile, lane, lanes, values = _chunks(N, ROWS)
    there = (lane < lanes)[:, None] & (values > 0)[:, None]
    out = fixed + unit * (FIXED // 4)
    slot = slots + unit * (spare // 4)

    escapes = tl.zeros((ROWS, 4), tl.int32)
    fours, twos, one = (escapes, escapes, escapes, escapes), (escapes, escapes), escapes
    for q in tl.static_range(8):
        pair = tl.zeros((ROWS, 4), tl.int32)
        for p in tl.static_range(q, 16, 8):
            held = _part(lane, lanes, values, p)
            x = tl.load(values_at + _words(tile, lane, lanes, p), mask=held, other=0)
            code, escaped = _code(x, base, MANTISSA, WIDTH)
            rest = (x & fraction) | ((x >> (15 - MANTISSA)) & sign)
            head = code | (((rest >> 8) & above) << WIDTH)
            if N % 4096 != 0:
                head, escaped = tl.where(held, head, 0), tl.where(held, escaped, 0)
            elif ROWS * 128 != N:
                escaped = tl.where(held, escaped, 0)
            pair |= (rest & 0x00FF00FF) << (p // 8 * 8)
            escapes |= escaped << p
            if bits & 4:
                fours = _with(fours, p % 4, (head & 0x000F000F) << (p // 4 * 4))
            if bits & 2:
                twos = _with(twos, p % 2, ((head >> (bits & 4)) & 0x00030003) << (p // 2 * 2))
            if bits & 1:
                one |= ((head >> (bits & 6)) & 0x00010001) << p
        tl.store(out + _line(tile, lane, lanes, q, lines), pair, mask=there)
    if bits & 4:
        for i in tl.static_range(4):
            tl.store(out + _line(tile, lane, lanes, 8 + i, lines), fours[i], mask=there)
    if bits & 2:
        for i in tl.static_range(2):
            tl.store(out + _line(tile, lane, lanes, 8 + (bits & 4) + i, lines), twos[i], mask=there)
    if bits & 1:
        tl.store(out + _line(tile, lane, lanes, 8 + (bits & 6), lines), one, mask=there)

    first, each, rounds, count, left = _lists(escapes)
    tail = tl.minimum((count + 15) // 16 * 16, spare)
    tl.store(sizes + unit, (FIXED + tail).to(tl.int64))
    if tail == spare:  # the unit is stored as it is: read again from the pool, it overwrites the coded rows
        tl.debug_barrier()
        for k in range(16):
            at = _words(tile, lane, lanes, k)
            copied = _part(lane, lanes, values, k)
            word = tl.load(values_at + at, mask=copied, other=0)
            tl.store(out + at, word, mask=copied & (at < FIXED // 4))
            tl.store(slot + at - FIXED // 4, word, mask=copied & (at >= FIXED // 4))
    else:
        symbols, lanes_at = slot.to(tl.pointer_type(tl.uint8)), values_at.to(tl.pointer_type(tl.int16))
        for done in range(rounds):
            part, column, left = _next(left)
            value = tl.load(lanes_at + tile * 4096 + part * lanes + lane + column, mask=done < each, other=0).to(tl.int32)
            tl.store(symbols + first + done, (value >> MANTISSA) & ((1 << (15 - MANTISSA)) - 1), mask=done < each)
        padding = count + tl.arange(0, 16)
        tl.store(symbols + padding, tl.zeros((16,), tl.uint8), mask=padding < tail)


@triton.jit
def gather_tails(slots, sizes, ends, tails, FIXED: tl.constexpr, SPARE: tl.constexpr, ROWS: tl.constexpr):
    """Move the tails together. ends: int64 [units], running sums of their bytes. slots, tails: words of 32 bits."""
    unit = tl.program_id(0).to(tl.int64)
    words = ((tl.load(sizes + unit) - FIXED) // 4).to(tl.int32)
    to = tails + tl.multiple_of(tl.load(ends + unit) // 4 - words, 4)
    slot = slots + unit * (SPARE // 4)
    for begin in range(0, words, ROWS * 4):
        at = begin + tl.arange(0, ROWS)[:, None] * 4 + tl.arange(0, 4)[None, :]
        held = (begin + tl.arange(0, ROWS) * 4 < words)[:, None]
        tl.store(to + at, tl.load(slot + at, mask=held), mask=held)


@triton.jit
def decode_units(
    fixed, sizes, ends, tails, bases, data, starts, damaged, groups,
    N: tl.constexpr, ROWS: tl.constexpr, MANTISSA: tl.constexpr, WIDTH: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """Decode units. Arguments as in encode_units and gather_tails. damaged: uint8 [units], 1 where sizes and codes do not fit each
    other."""
    unit = tl.program_id(0).to(tl.int64)
    values_at = data + tl.multiple_of(tl.load(starts + unit) // 2, 8)
    base = tl.load(bases + unit % groups).to(tl.int32) * 0x10001
    bits: tl.constexpr = MANTISSA - 7 + WIDTH  # of a head
    lines: tl.constexpr = 8 + bits
    limit: tl.constexpr = ((1 << WIDTH) - 1) * 0x10001
    fraction: tl.constexpr = ((1 << MANTISSA) - 1) * 0x10001
    above: tl.constexpr = ((1 << (MANTISSA - 7)) - 1) * 0x10001
    exponents: tl.constexpr = (1 << (15 - MANTISSA)) - 1
    tile, lane, lanes, values = _chunks(N, ROWS)
    there = (lane < lanes)[:, None] & (values > 0)[:, None]
    tail = (tl.load(sizes + unit) - FIXED).to(tl.int32)
    came = fixed + unit * (FIXED // 4)
    listed = tails + tl.multiple_of((tl.load(ends + unit) - tail) // 4, 4)
    if tail == 2 * N - FIXED:
        tl.store(damaged + unit, 0)
        for k in range(16):
            at = _words(tile, lane, lanes, k)
            copied = _part(lane, lanes, values, k)
            word = tl.load(came + at, mask=copied & (at < FIXED // 4), other=0)
            word |= tl.load(listed + at - FIXED // 4, mask=copied & (at >= FIXED // 4), other=0)
            tl.store(values_at + at, word, mask=copied)
    else:
        escapes = tl.zeros((ROWS, 4), tl.int32)
        fours, twos, one = (), (), escapes
        if bits & 4:
            for i in tl.static_range(4):
                fours = fours + (tl.load(came + _line(tile, lane, lanes, 8 + i, lines), mask=there, other=0),)  # type: ignore[assignment]  # noqa: RUF005
        if bits & 2:
            for i in tl.static_range(2):
                row = _line(tile, lane, lanes, 8 + (bits & 4) + i, lines)
                twos = twos + (tl.load(came + row, mask=there, other=0),)  # type: ignore[assignment]  # noqa: RUF005
        if bits & 1:
            one = tl.load(came + _line(tile, lane, lanes, 8 + (bits & 6), lines), mask=there, other=0)
        for q in tl.static_range(8):
            pair = tl.load(came + _line(tile, lane, lanes, q, lines), mask=there, other=0)
            for p in tl.static_range(q, 16, 8):
                head = escapes & 0
                if bits & 4:
                    head |= (fours[p % 4] >> (p // 4 * 4)) & 0x000F000F
                if bits & 2:
                    head |= ((twos[p % 2] >> (p // 2 * 2)) & 0x00030003) << (bits & 4)
                if bits & 1:
                    head |= ((one >> p) & 0x00010001) << (bits & 6)
                code = head & limit
                escaped = ((code + 0x00010001) >> WIDTH) & 0x00010001
                held = _part(lane, lanes, values, p)
                escapes |= (escaped if N % 4096 == 0 else tl.where(held, escaped, 0)) << p
                rest = ((pair >> (p // 8 * 8)) & 0x00FF00FF) | (((head >> WIDTH) & above) << 8)
                exponent = (code + base) & 0x00FF00FF & (exponents * 0x10001)
                x = (rest & fraction) | (exponent << MANTISSA) | ((rest << (15 - MANTISSA)) & -2147450880)
                tl.store(values_at + _words(tile, lane, lanes, p), x, mask=held)

        first, each, rounds, count, left = _lists(escapes)
        wrong = (count + 15) // 16 * 16 != tail
        tl.store(damaged + unit, wrong.to(tl.uint8))
        tl.debug_barrier()  # escaped values are written, except for their exponents
        symbols, lanes_at = listed.to(tl.pointer_type(tl.uint8)), values_at.to(tl.pointer_type(tl.int16))
        for done in range(tl.where(wrong, 0, rounds)):
            part, column, left = _next(left)
            place = lanes_at + tile * 4096 + part * lanes + lane + column
            symbol = tl.load(symbols + first + done, mask=done < each, other=0).to(tl.int32)
            value = tl.load(place, mask=done < each, other=0).to(tl.int32)
            tl.store(place, ((value & ~(exponents << MANTISSA)) | (symbol << MANTISSA)).to(tl.int16), mask=done < each)


@triton.jit
def count_exponents(data, starts, counts, groups, MANTISSA: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr):
    """Add the exponents of the first N values of each unit to its group's histogram. data: 16-bit lanes; counts: int32 [groups, 256]."""
    unit = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    x = tl.load(data + tl.load(starts + unit) + at, mask=at < N, other=0).to(tl.int32)
    found = tl.histogram((x >> MANTISSA) & ((1 << (15 - MANTISSA)) - 1), 256, mask=at < N)
    tl.atomic_add(counts + unit % groups * 256 + tl.arange(0, 256), found)

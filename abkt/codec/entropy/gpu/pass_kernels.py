"""The passes of the entropy coder in Triton: from codes (encode_kernels.py) to bytes, and back.

The kernels compute symbols and contexts where they code them: in each step a program takes LANES symbols of each of its cells, as in
rans/kernels.py. `listed` describes, for every pass and place in a row of symbols, the symbol's channel (strips.Strips). The rows of rANS
tables lie end to end: first those of 64 symbols, for channels that start, then those of 4 symbols, for levels of skew and quarters.
"""

from __future__ import annotations

import triton
import triton.language as tl

from abkt.codec.entropy import tables as entropy_tables
from abkt.codec.entropy.gpu.arithmetic import HALVES, VERBATIM, WIDEST, class_row
from abkt.codec.rans.kernels import LANES, LEAST, SHARE_BITS, SHARES, STATE_WORDS, ended, first_states, put, put_states, step_back

CLASS_BIAS = tl.constexpr(64)  # of the class in `listed`
WIDE, NARROW = tl.constexpr(2 * entropy_tables.MOST), tl.constexpr(4)  # symbols of a row of the tables
QUARTERED = tl.constexpr(entropy_tables.LEVELS)  # comes after the levels of skew


@triton.jit
def _cells_of(
    numbers, classes, metas, listed, counts, coded, cells, tiles, coded_tokens,
    PASS: tl.constexpr, PASSES: tl.constexpr, LEVELS: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, STREAMS: tl.constexpr,
):  # fmt: skip
    """This program's cells that code this pass with rANS; for each its metadata, its part of `listed`, its symbols per row and in all."""
    one = tl.program_id(0) * STREAMS + tl.arange(0, STREAMS)
    local, tile = one // tiles, one % tiles
    cell = tl.load(numbers + local, mask=one < cells, other=0) * tiles + tile
    here = local * PASSES + PASS - 1
    there = (one < cells) & (tl.load(coded + here, mask=one < cells, other=0) != 0)
    there &= tl.load(classes + cell, mask=there, other=VERBATIM) != VERBATIM
    count = tl.load(counts + here, mask=there, other=0)
    meta = tl.load(metas + cell, mask=there, other=0).to(tl.int32)
    rows = tl.minimum(TILE, coded_tokens - tile * TILE) >> LEVELS
    return cell, there, meta, listed + here.to(tl.int64) * (DIM << LEVELS), count, rows * count


@triton.jit
def _begun(packed, meta):
    """The row of the tables for a channel of `listed` that starts at this pass, and whether the channel does start here."""
    row = class_row((packed >> 17) - CLASS_BIAS, meta)
    return tl.minimum(row, HALVES - 1), (packed >> 16) & 1 != 0


@triton.jit
def _refined(packed, meta, finer, skew, held, WIDTH: tl.constexpr):
    """Where the table row begins that halves or quarters a bin; the resulting bins are 2**WIDTH times as fine as those of `finer`."""
    if WIDTH == 2:
        level = tl.zeros_like(finer) + QUARTERED
    else:
        parent = class_row((packed >> 17) - CLASS_BIAS - 4, meta)
        level = tl.load(skew + parent * WIDEST + tl.minimum(finer, WIDEST - 1), mask=held, other=0).to(tl.int32)
    return level * NARROW + HALVES * WIDE


@triton.jit
def encode_pass(
    codes, numbers, classes, metas, listed, counts, coded, skew, table, slots, sizes, all_cells, cells, tiles, coded_tokens, capacity,
    PASS: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, PASSES: tl.constexpr, LEVELS: tl.constexpr, TILE: tl.constexpr,
    DIM: tl.constexpr, STREAMS: tl.constexpr,
):  # fmt: skip
    """Encode one pass of the cells of a launch with rANS, into the ends of their slots. slots: 16-bit words [PASSES, all_cells, capacity].
    sizes: int64 [PASSES, all_cells], bytes; above the capacity if the pass does not fit. Sizes of other cells are not written."""
    cell, there, meta, listed, count, n = _cells_of(
        numbers, classes, metas, listed, counts, coded, cells, tiles, coded_tokens, PASS, PASSES, LEVELS, TILE, DIM, STREAMS
    )
    meta, listed = meta[:, None], listed[:, None]
    from_codes, slot = (codes + cell.to(tl.int64) * (TILE * DIM))[:, None], slots + ((PASS - 1) * all_cells + cell).to(tl.int64) * capacity
    steps = (n + LANES - 1) // LANES
    i = (steps[:, None] - 1) * LANES + tl.arange(0, LANES)[None, :]
    width = tl.maximum(count, 1)[:, None]
    row, place = i // width, i % width
    back_rows, back = LANES // width, LANES % width
    x = tl.full((STREAMS, LANES), LEAST, tl.uint32)
    at = tl.zeros((STREAMS,), tl.int32) + capacity
    for _step in range(tl.max(steps)):
        held = (i >= 0) & (i < n[:, None])
        packed = tl.load(listed + place, mask=held, other=0)
        code = tl.load(from_codes + row * (DIM << LEVELS) + (packed & 0xFFFF), mask=held, other=0).to(tl.int32)
        code = tl.maximum(code, 0)
        finer = code >> (1 + SHIFT)
        begin, starts = _begun(packed, meta)
        entry = begin * WIDE + 2 * finer + (code & 1)
        if PASS > 1:
            refined = _refined(packed, meta, finer >> WIDTH, skew, held & ~starts, WIDTH)
            entry = tl.where(starts, entry, refined + (finer & ((1 << WIDTH) - 1)))
        x, at = put(x, tl.load(table + entry, mask=held, other=0), held, slot, at)
        i, row, place = i - LANES, row - back_rows, place - back
        wraps = place < 0
        row, place = row - wraps.to(tl.int32), tl.where(wraps, place + width, place)
    at = put_states(x, n > 0, slot, at)
    tl.store(sizes + (PASS - 1) * all_cells + cell, (2 * (capacity - at)).to(tl.int64), mask=there)


@triton.jit
def _eighths_of(
    numbers, classes, listed, counts, coded, tiles, coded_tokens,
    PASS: tl.constexpr, WIDTH: tl.constexpr, PASSES: tl.constexpr, LEVELS: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """This program's cell, whether this pass of it is plain, its rows, their eighths, its part of `listed`, symbols per row, and bytes."""
    local, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    cell, here = tl.load(numbers + local) * tiles + tile, local * PASSES + PASS - 1
    plain = (tl.load(coded + here) == 0) & (tl.load(classes + cell) != VERBATIM)
    rows, count = tl.minimum(TILE, coded_tokens - tile * TILE) >> LEVELS, tl.load(counts + here)
    eighth = (rows + 7) // 8
    return cell, plain, rows, eighth, listed + here.to(tl.int64) * (DIM << LEVELS), count, WIDTH * eighth * count


@triton.jit
def pack_pass(
    codes, numbers, classes, listed, counts, coded, slots, sizes, all_cells, tiles, coded_tokens, capacity,
    PASS: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, PASSES: tl.constexpr, LEVELS: tl.constexpr, TILE: tl.constexpr,
    DIM: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Pack one plain pass of a cell into the end of its slot, as wire.pack_bits does. slots: uint8 [PASSES, all_cells, capacity]."""
    cell, plain, rows, eighth, listed, count, size = _eighths_of(
        numbers, classes, listed, counts, coded, tiles, coded_tokens, PASS, WIDTH, PASSES, LEVELS, TILE, DIM
    )
    if plain:
        slot = (PASS - 1) * all_cells + cell
        tl.store(sizes + slot, size.to(tl.int64))
        to, from_codes = slots + (slot.to(tl.int64) + 1) * capacity - size, codes + cell.to(tl.int64) * (TILE * DIM)
        for begin in range(0, size, BYTES):
            byte = begin + tl.arange(0, BYTES)
            first = byte // (eighth * count) * (8 // WIDTH * eighth) + byte // count % eighth
            channel = tl.load(listed + byte % count, mask=byte < size, other=0) & 0xFFFF
            packed = tl.zeros((BYTES,), tl.int32)
            for part in tl.static_range(8 // WIDTH):
                row = first + part * eighth
                code = tl.load(from_codes + row * (DIM << LEVELS) + channel, mask=(byte < size) & (row < rows), other=0).to(tl.int32)
                packed |= ((tl.maximum(code, 0) >> (1 + SHIFT)) & ((1 << WIDTH) - 1)) << (WIDTH * part)
            tl.store(to + byte, packed.to(tl.uint8), mask=byte < size)


@triton.jit
def join_passes(slots, sizes, heads, head_sizes, ends, body, cells, capacity, head_capacity, BYTES: tl.constexpr):
    """Join the passes, which lie at the ends of their slots; the head of a cell goes before its pass 1. ends: int64 [passes, cells],
    running sums of the lengths of passes with their heads. A verbatim cell has sizes of 0."""
    slot = tl.program_id(0).to(tl.int64)
    size, to = tl.load(sizes + slot), body + tl.load(ends + slot)
    begin = slots + (slot + 1) * capacity - size
    for done in range(0, size.to(tl.int32), BYTES):
        at = done + tl.arange(0, BYTES)
        tl.store(to - size + at, tl.load(begin + at, mask=at < size), mask=at < size)
    if slot < cells:
        head_size = tl.load(head_sizes + slot)
        for done in range(0, head_size.to(tl.int32), BYTES):
            at = done + tl.arange(0, BYTES)
            tl.store(to - size - head_size + at, tl.load(heads + slot * head_capacity + at, mask=at < head_size), mask=at < head_size)


@triton.jit
def decode_pass(
    codes, numbers, classes, metas, present, listed, counts, coded, skew, owner, table, wire, length, offsets, sizes, head_sizes, damaged,
    all_cells, cells, tiles, coded_tokens,
    PASS: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, PASSES: tl.constexpr, LEVELS: tl.constexpr, TILE: tl.constexpr,
    DIM: tl.constexpr, STREAMS: tl.constexpr,
):  # fmt: skip
    """Decode one rANS pass and add it to the codes of the cells of a launch. offsets, sizes: int64 [PASSES + 1, all_cells], where each pass
    is in the `length` bytes of the wire; pass 1 begins with its head. Nothing outside of a pass is read. damaged [all_cells] is set to 1
    where a pass is not valid."""
    cell, there, meta, listed, count, n = _cells_of(
        numbers, classes, metas, listed, counts, coded, cells, tiles, coded_tokens, PASS, PASSES, LEVELS, TILE, DIM, STREAMS
    )
    there &= tl.load(present + cell, mask=there, other=0) >= PASS
    n = tl.where(there, n, 0)
    meta, listed = meta[:, None], listed[:, None]
    offset = tl.load(offsets + PASS * all_cells + cell, mask=there, other=0)
    size = tl.load(sizes + PASS * all_cells + cell, mask=there, other=0)
    inside = there & (offset >= 0) & (size >= 0) & (offset <= length - size)
    if PASS == 1:
        head = tl.load(head_sizes + cell, mask=there, other=0)
        offset, size = offset + head, size - head
    x, words, bad = first_states(wire + offset, size, inside & (n > 0))
    words_at = wire + offset + 2 * STATE_WORDS
    from_codes = (codes + cell.to(tl.int64) * (TILE * DIM))[:, None]
    read = tl.zeros((STREAMS,), tl.int32)
    i = tl.zeros((STREAMS, LANES), tl.int32) + tl.arange(0, LANES)[None, :]
    width = tl.maximum(count, 1)[:, None]
    row, place = i // width, i % width
    on_rows, on = LANES // width, LANES % width
    for _step in range(tl.max((n + LANES - 1) // LANES)):
        held = i < n[:, None]
        packed = tl.load(listed + place, mask=held, other=0)
        begin, starts = _begun(packed, meta)
        share = (x & (SHARES - 1)).to(tl.int32)
        symbol = tl.load(owner + begin * SHARES + share, mask=held & starts, other=0).to(tl.int32)
        entry, at = begin * WIDE + symbol, from_codes + row * (DIM << LEVELS) + (packed & 0xFFFF)
        code = ((symbol >> 1) << (1 + SHIFT)) | (symbol & 1)
        if PASS > 1:
            above = tl.load(at, mask=held & ~starts, other=0).to(tl.int32)
            refined = _refined(packed, meta, above >> (1 + SHIFT + WIDTH), skew, held & ~starts, WIDTH)
            if WIDTH == 2:
                part = share >> (SHARE_BITS - 2)
            else:
                part = (share >= (tl.load(table + refined, mask=held & ~starts, other=0) & 0xFFFF)).to(tl.int32)
            entry, code = tl.where(starts, entry, refined + part), tl.where(starts, code, above | (part << (1 + SHIFT)))
        interval = tl.load(table + entry, mask=held, other=0)
        within = (share - (interval >> 16)).to(tl.uint32)
        x, read = step_back(x, (interval & 0xFFFF).to(tl.uint32), within, held, words_at, words, read)
        tl.store(at, code.to(tl.int16), mask=held)
        i, row, place = i + LANES, row + on_rows, place + on
        wraps = place >= width
        row, place = row + wraps.to(tl.int32), tl.where(wraps, place - width, place)
    bad |= ~inside | tl.where(n > 0, ~ended(x, words, read), size != 0)
    tl.store(damaged + cell, tl.full((STREAMS,), 1, tl.uint8), mask=there & bad)


@triton.jit
def unpack_pass(
    codes, numbers, classes, present, listed, counts, coded, wire, length, offsets, sizes, damaged, all_cells, tiles, coded_tokens,
    PASS: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, PASSES: tl.constexpr, LEVELS: tl.constexpr, TILE: tl.constexpr,
    DIM: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Unpack one plain pass and add it to the codes of a cell. Arguments as in decode_pass."""
    cell, plain, rows, eighth, listed, count, expected = _eighths_of(
        numbers, classes, listed, counts, coded, tiles, coded_tokens, PASS, WIDTH, PASSES, LEVELS, TILE, DIM
    )
    if plain and tl.load(present + cell) >= PASS:
        offset, size = tl.load(offsets + PASS * all_cells + cell), tl.load(sizes + PASS * all_cells + cell)
        if (size != expected) | (offset < 0) | (offset > length - size):
            tl.store(damaged + cell, 1)
        else:
            from_codes = codes + cell.to(tl.int64) * (TILE * DIM)
            for begin in range(0, expected, BYTES):
                byte = begin + tl.arange(0, BYTES)
                first = byte // (eighth * count) * (8 // WIDTH * eighth) + byte // count % eighth
                channel = tl.load(listed + byte % count, mask=byte < expected, other=0) & 0xFFFF
                packed = tl.load(wire + offset + byte, mask=byte < expected, other=0).to(tl.int32)
                for part in tl.static_range(8 // WIDTH):
                    row = first + part * eighth
                    at, held = from_codes + row * (DIM << LEVELS) + channel, (byte < expected) & (row < rows)
                    more = ((packed >> (WIDTH * part)) & ((1 << WIDTH) - 1)) << (1 + SHIFT)
                    tl.store(at, (tl.load(at, mask=held, other=0).to(tl.int32) | more).to(tl.int16), mask=held)

"""The format of a stream: cuts and pieces; a damaged stream is never decoded."""

import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.codec.codec import Codec
from abkt.codec.header import FIXED, VERSION, read_header
from abkt.kv.pool import Pool


@pytest.fixture(scope="module")
def case(layout_of, filled_pool, table_of):
    layout = layout_of(layers=1, heads=2, dim=16, block_tokens=4, blocks=30)
    pool, table = filled_pool(layout), table_of(layout, 77)
    pool.data[table[3], 0, 1, 1, 2, 5] = float("nan")
    codec = Codec(layout, tile_tokens=12)
    return codec, layout, table, codec.encode(pool, table, 77)


def refused(case, data: bytes, message: str = "stream") -> str:
    """The reason why `data` is refused. The pool must stay unchanged."""
    codec, layout, table, _ = case
    out = Pool(layout)
    out.data.fill_(3.0)
    with pytest.raises(ValueError, match=message) as caught:
        codec.expand(data, out, table)
    assert (out.data == 3.0).all(), "the pool was written before the stream was found damaged"
    return str(caught.value)


def resealed(data: bytes, change) -> bytes:
    """A header with a changed field and a matching checksum."""
    size = FIXED.unpack_from(data)[5]
    head = bytearray(data[: size - 4])
    change(head)
    return bytes(head) + struct.pack("<I", zlib.crc32(head)) + data[size:]


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_flipped_byte_is_refused(case, data):
    stream = case[-1]
    good = stream.prefix(data.draw(st.integers(0, len(stream.ends) - 1)))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    refused(case, bytes(bad))


def test_a_change_of_any_header_byte_is_refused(case):
    good = case[-1].prefix(0)
    for at in range(FIXED.unpack_from(good)[5]):
        bad = bytearray(good)
        bad[at] ^= 0x10
        refused(case, bytes(bad))


def test_the_padding_of_a_table_of_checksums_is_checked(case):
    """No checksum covers the padding, so it must be 0."""
    stream = case[-1]
    at, good = stream.header.sections, stream.prefix(len(stream.ends) - 1)
    filling = [
        place
        for section, start in enumerate(at.tables)
        for place in range(int(start) + 4 * int((at.of == section).sum()), int(start) + at.table_bytes(section))
    ]
    assert filling
    for place in filling:
        bad = bytearray(good)
        bad[place] ^= 0x10
        assert "only zeros" in refused(case, bytes(bad))


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_cut_inside_a_band_is_refused(case, size):
    stream = case[-1]
    size %= stream.ends[-1]
    if size not in stream.ends:
        refused(case, stream.prefix(len(stream.ends) - 1)[:size], "is cut inside")


def test_damage_is_refused_naming_its_place(case):
    stream = case[-1]
    good = stream.prefix(len(stream.ends) - 1)
    header = stream.header

    def flipped(at: int) -> bytes:
        return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]

    assert "header is damaged" in refused(case, flipped(20))
    assert "verbatim edges" in refused(case, flipped(header.edges_at))
    assert "verbatim cells" in refused(case, flipped(header.verbatim_at))
    assert "layer 0, head 0, K, tile 0), metadata" in refused(case, flipped(int(header.sections.starts[0])))
    first = int((header.sections.of == 0).sum())  # the first slot of band 0
    index, cell = divmod(int(header.sections.order[first]), header.cells.count)
    assert index == 1
    assert f"{header.cells.name(cell)}, bits 7 to 7" in refused(case, flipped(int(header.sections.starts[first])))
    assert header.cells.name(cell) in refused(case, flipped(stream.ends[0])), "its checksum"
    assert "followed by 3" in refused(case, good + b"abc")
    assert "not a KV stream" in refused(case, b"GIF8" + good[4:])
    assert "cut inside its header" in refused(case, b"")


def test_an_inconsistent_header_is_refused(case):
    good = case[-1].prefix(0)

    def field(offset: int, form: str, value: int):
        return lambda head: struct.pack_into(form, head, offset, value)

    for change, message in (
        (field(4, "<H", VERSION + 1), f"version {VERSION + 1}; this codec reads version {VERSION}"),
        (field(6, "<B", 5), "depth of 5 bits"),
        (field(7, "<B", 9), "order 9"),
        (field(8, "<B", 3), "coder 3"),
        (field(8, "<B", 1), "its fields need"),
        (field(14, "<I", 10**9), "room for 120"),
        (field(14, "<I", 0), "at least 1"),
        (field(18, "<I", 0), "not a whole number of blocks"),
        (field(22, "<H", 2), r"\(2, 2, 2, 4, 16\).*\(1, 2, 2, 4, 16\)"),
        (field(24, "<H", 1), r"\(1, 1, 2, 4, 16\).*\(1, 2, 2, 4, 16\)"),
        (field(32, "<B", 2), "float32"),
        (field(32, "<B", 77), "unknown dtype"),
        (field(33, "<B", 70), "70 bands"),
        (field(33, "<B", 5), "its fields need|not valid|cut inside"),
    ):
        refused(case, resealed(good, change), message)


def test_a_cell_out_of_order_or_twice_is_refused(case):
    stream = case[-1]
    good, header = stream.prefix(0), stream.header
    forms_at = FIXED.size + 4 * (header.bands.count + 1)
    bands_at = forms_at + header.cells.count
    cell = next(c for c in range(header.cells.count) if c not in header.verbatim)

    def later_first(head: bytearray) -> None:
        head[bands_at + cell] = header.bands.count - 1
        head[bands_at + header.cells.count + cell] = 0

    def coded_and_exact(head: bytearray) -> None:
        head[bands_at + int(header.verbatim[0])] = 0

    def unknown(head: bytearray) -> None:
        head[forms_at + cell] = 16

    for change in (later_first, coded_and_exact, unknown):
        refused(case, resealed(good, change), "not valid")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_pieces_joined_are_the_bytes_on_the_wire(case, data):
    stream = case[-1]
    good = stream.prefix(len(stream.ends) - 1)
    assert len(good) == stream.ends[-1]
    start, stop = sorted(data.draw(st.lists(st.integers(0, len(good)), min_size=2, max_size=2)))
    pieces = stream.buffers(start, stop)
    assert b"".join(pieces) == good[start:stop]
    assert all(len(piece) for piece in pieces)


def test_pieces_are_few_and_are_not_copies(layout_of, filled_pool, table_of):
    layout = layout_of(dim=64)
    stream = Codec(layout).encode(filled_pool(layout), table_of(layout, 300), 300, order="uniform")
    assert len(stream.buffers(0, stream.ends[-1])) == 1 + 2 * 7, "head, then checksums and slots in storage order, seven times"
    sums, slots = stream.buffers(stream.ends[0], stream.ends[1])
    assert sums.obj is stream.sums.obj
    assert slots.obj is stream.body.obj
    with pytest.raises(ValueError, match="not all in a stream"):
        stream.buffers(0, stream.ends[-1] + 1)


def test_slots_are_aligned_on_the_wire(case):
    stream = case[-1]
    assert all(end % 16 == 0 for end in stream.ends)
    assert stream.header.edges_at % 16 == stream.header.verbatim_at % 16 == stream.header.head_bytes % 16 == 0
    assert not (stream.header.sections.starts % 16).any()


def test_a_stream_expands_into_any_pool_of_its_layout_that_is_large_enough(case, layout_of):
    """Pools of different sizes have the same layout. A pool that is too small is refused."""
    codec, _, table, stream = case
    good = stream.prefix(len(stream.ends) - 1)
    larger = layout_of(layers=1, heads=2, dim=16, block_tokens=4, blocks=200)
    out, same = Pool(larger), Pool(codec.layout)
    Codec(larger).expand(bytearray(good), out, [block + 150 for block in table])
    codec.expand(memoryview(good), same, table)
    moved, kept = out.data[[block + 150 for block in table]], same.data[table]
    assert torch.equal(moved.view(torch.int16), kept.view(torch.int16))
    with pytest.raises(ValueError, match="room for 16"):
        read_header(memoryview(good), layout_of(layers=1, heads=2, dim=16, block_tokens=4, blocks=4))
    refused((codec, codec.layout, table[:-1], stream), good, "cannot hold 77 tokens")


@pytest.mark.slow
def test_a_million_mutated_headers_are_parsed_or_refused(case):
    """For any input, the parser raises ValueError or returns a header that is consistent with its own size."""
    import random

    layout, good = case[1], case[-1].prefix(0)
    size, rng = FIXED.unpack_from(good)[5], random.Random(0)
    for _ in range(1_000_000):
        head = bytearray(good[:size])
        for _ in range(rng.randint(1, 3)):
            head[rng.randrange(FIXED.size if rng.random() < 0.7 else size)] = rng.randrange(256)
        head[-4:] = struct.pack("<I", zlib.crc32(memoryview(head)[:-4]))
        try:
            header = read_header(memoryview(head), layout)
        except ValueError:
            continue
        assert header.header_bytes == size
        assert list(header.ends) == sorted(header.ends)


@pytest.mark.parametrize("coder", ["fixed", "entropy"])
def test_reordering_a_stream_equals_encoding_it_in_that_order(layout_of, filled_pool, table_of, coder):
    """Weights that come after encoding need no second encode. Every byte is the same, and so are the expanded values."""
    layout = layout_of(layers=2, heads=2, dim=16, block_tokens=4, blocks=30)
    pool, table, codec = filled_pool(layout), table_of(layout, 77), Codec(layout, tile_tokens=12)
    pool.data[table[3], 0, 1, 1, 2, 5] = float("nan")
    flat = codec.encode(pool, table, 77, coder=coder)
    weights = torch.rand(flat.header.cells.shape, generator=torch.Generator().manual_seed(3)) ** 4
    for order in ("slope", "uniform"):
        late, early = flat.reordered(weights, order), codec.encode(pool, table, 77, order=order, weights=weights, coder=coder)
        assert late.curve == early.curve
        for cut in range(len(early.ends)):
            assert late.prefix(cut) == early.prefix(cut)
    assert flat.reordered(weights).prefix(3) != flat.prefix(3)
    with pytest.raises(ValueError, match="do not fit"):
        flat.reordered(weights[0])

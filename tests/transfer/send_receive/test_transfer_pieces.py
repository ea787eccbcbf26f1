"""Scattered memory is read and written as one byte sequence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.transfer.pieces import BufferSink, PiecesSink, PiecesSource


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=10).filter(any), st.data())
def test_any_range_equals_the_same_range_of_the_joined_pieces(pieces, data):
    whole = b"".join(pieces)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    source = PiecesSource(pieces)
    assert source.ends == (len(whole),)
    assert b"".join(source.buffers(start, stop)) == whole[start:stop]
    assert all(len(buffer) for buffer in source.buffers(start, stop))


def test_writing_to_a_range_changes_the_pieces_own_memory():
    memory = [bytearray(3), bytearray(5)]
    views = PiecesSink(memory).buffers(2, 6)
    views[0][:] = b"a"
    views[1][:] = b"bcd"
    assert memory == [b"\0\0a", b"bcd\0\0"]
    sink = BufferSink(4)
    sink.buffers(1, 3)[0][:] = b"xy"
    assert sink.data == b"\0xy\0"


def test_pieces_of_other_dtypes_are_viewed_as_bytes():
    rows = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert b"".join(PiecesSource([memoryview(rows)]).buffers(0, 12)) == rows.tobytes()
    with pytest.raises(ValueError, match="strided"):
        PiecesSource([memoryview(rows[:, ::2])])


def test_unusable_memory_is_refused():
    with pytest.raises(ValueError, match="read-only"):
        PiecesSink([b"fixed"])
    with pytest.raises(ValueError, match="at least one byte"):
        PiecesSource([b""])
    with pytest.raises(ValueError, match="last cut ends at byte 3"):
        PiecesSource([b"four"], ends=(1, 3))
    with pytest.raises(ValueError, match=r"outside of the 4 held"):
        PiecesSource([b"four"]).buffers(2, 5)

"""One byte sequence over scattered pieces of memory: what a transfer reads from, and what it writes to. Nothing is copied."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Protocol

from abkt.transfer.frame import Buffer


class ByteSource(Protocol):
    """ends: the byte at which each cut ends, rising; the last is the size. The bytes must not change while they are being sent."""

    @property
    def ends(self) -> Sequence[int]: ...

    def buffers(self, start: int, stop: int) -> Sequence[Buffer]:
        """Bytes [start, stop) as pieces of memory, in order."""
        ...


class ByteSink(Protocol):
    """size: the bytes that a peer may write."""

    @property
    def size(self) -> int: ...

    def buffers(self, start: int, stop: int) -> Sequence[memoryview]:
        """Writable pieces of memory for bytes [start, stop), in order."""
        ...


class Pieces:
    """Buffers one after another. Raises ValueError if one is not contiguous or there is no byte at all."""

    def __init__(self, pieces: Iterable[Buffer]) -> None:
        views = [memoryview(piece) for piece in pieces]
        if not all(view.contiguous for view in views):
            raise ValueError("a transfer moves contiguous pieces of memory; one of these is strided")
        self._views = [view.cast("B") for view in views if view.nbytes]
        self._stops = list(accumulate(view.nbytes for view in self._views))
        if not self._stops:
            raise ValueError("a transfer needs at least one byte")

    @property
    def size(self) -> int:
        return self._stops[-1]

    def buffers(self, start: int, stop: int) -> list[memoryview]:
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"bytes [{start}, {stop}) lie outside of the {self.size} held")
        found = []
        index = bisect_right(self._stops, start)
        while start < stop:
            view = self._views[index]
            begin = start - (self._stops[index] - view.nbytes)
            piece = view[begin : begin + stop - start]
            found.append(piece)
            start += piece.nbytes
            index += 1
        return found


class PiecesSource(Pieces):
    """Pieces to be read; without ends there is one cut, the whole."""

    def __init__(self, pieces: Iterable[Buffer], ends: Sequence[int] = ()) -> None:
        super().__init__(pieces)
        self.ends = tuple(ends) or (self.size,)
        if self.ends[-1] != self.size:
            raise ValueError(f"the last cut ends at byte {self.ends[-1]}, but the pieces hold {self.size}")


class PiecesSink(Pieces):
    """Pieces to be written, such as the runs of pool blocks that were reserved."""

    def __init__(self, pieces: Iterable[Buffer]) -> None:
        super().__init__(pieces)
        if any(view.readonly for view in self._views):
            raise ValueError("a received transfer needs writable memory; one of these pieces is read-only")


class BufferSink(PiecesSink):
    """One bytearray, for a stream. data: what has been received so far lies at its beginning."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        super().__init__([self.data])

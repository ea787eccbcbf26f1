"""One byte sequence over scattered pieces of memory: what a transfer reads from, and what it writes to. Nothing is copied."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from abkt.transfer.device.pieces import Piece, Space
from abkt.transfer.protocol.frame import Buffer

if TYPE_CHECKING:
    import torch


class ByteSource(Protocol):
    """ends: the byte at which each cut ends, rising; the last is the size. The bytes must not change while they are being sent."""

    @property
    def ends(self) -> Sequence[int]: ...

    def buffers(self, start: int, stop: int) -> Sequence[Piece]:
        """Bytes [start, stop) as pieces of memory, in order."""
        ...


class ByteSink(Protocol):
    """size: the bytes that a peer may write."""

    @property
    def size(self) -> int: ...

    def buffers(self, start: int, stop: int) -> Sequence[Space]:
        """Writable pieces of memory for bytes [start, stop), in order."""
        ...


class Pieces:
    """Buffers one after another. Raises ValueError if one is not contiguous or there is no byte at all."""

    def __init__(self, pieces: Iterable[Buffer]) -> None:
        views = [memoryview(piece) for piece in pieces]
        if not all(view.contiguous for view in views):
            raise ValueError("a transfer moves contiguous pieces of memory; one of these is strided")
        self._views = [view.cast("B") for view in views if view.nbytes]
        self._stops = stops_of(self._views)

    @property
    def size(self) -> int:
        return self._stops[-1]

    def buffers(self, start: int, stop: int) -> list[memoryview]:
        return within(self._views, self._stops, start, stop)


def stops_of(views: Sequence[Any]) -> list[int]:
    """Where each ends, one after another."""
    stops = list(accumulate(view.nbytes for view in views))
    if not stops:
        raise ValueError("a transfer needs at least one byte")
    return stops


def within(views: Sequence[Any], stops: Sequence[int], start: int, stop: int) -> list[Any]:
    """Bytes [start, stop) as parts of the views, none of which is empty."""
    if not 0 <= start <= stop <= stops[-1]:
        raise ValueError(f"bytes [{start}, {stop}) lie outside of the {stops[-1]} held")
    found = []
    index = bisect_right(stops, start)
    while start < stop:
        view = views[index]
        begin = start - (stops[index] - view.nbytes)
        piece = view[begin : begin + stop - start]
        found.append(piece)
        start += piece.nbytes
        index += 1
    return found


class DevicePieces:
    """Tensors one after another, to be read or written: memory of a GPU, over a transport that reaches it. Of one cut, the whole.

    Raises ValueError if one is not contiguous uint8 of one dimension, or there is no byte at all.
    """

    def __init__(self, pieces: Iterable[torch.Tensor]) -> None:
        self._views = [piece for piece in pieces if piece.nbytes]
        for view in self._views:
            if view.dim() != 1 or view.element_size() != 1 or not view.is_contiguous():
                raise ValueError(f"a transfer moves contiguous bytes; one of these pieces is {tuple(view.shape)} of {view.dtype}")
        self._stops = stops_of(self._views)
        self.ends = (self.size,)

    @property
    def size(self) -> int:
        return self._stops[-1]

    def buffers(self, start: int, stop: int) -> list[torch.Tensor]:
        return within(self._views, self._stops, start, stop)


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

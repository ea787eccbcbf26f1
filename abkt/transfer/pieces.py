"""Scattered pieces of memory seen as one byte sequence: the source that a transfer reads and the sink that it writes. Nothing is copied."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from abkt.transfer.buffers import Buffer, Piece, Space

if TYPE_CHECKING:
    import torch


class ByteSource(Protocol):
    """The bytes that a transfer sends. They must not change until the transfer has ended.

    Attributes
    ----------
    ends : sequence of int
        The byte at which each cut ends, rising. The last one is the size of the source. A source that cannot be cut has one entry.
    """

    @property
    def ends(self) -> Sequence[int]: ...

    def buffers(self, start: int, stop: int) -> Sequence[Piece]:
        """Bytes [start, stop) as pieces of memory, in order."""
        ...


class ByteSink(Protocol):
    """The memory that a transfer is received into.

    Attributes
    ----------
    size : int
        Number of bytes that the peer may write.
    """

    @property
    def size(self) -> int: ...

    def buffers(self, start: int, stop: int) -> Sequence[Space]:
        """Writable pieces of memory for bytes [start, stop), in order."""
        ...


class Pieces:
    """Host buffers, one after another, as one byte sequence.

    Parameters
    ----------
    pieces : iterable of bytes, bytearray or memoryview
        Contiguous buffers of any element type; they are viewed as bytes. Empty ones are skipped.

    Raises
    ------
    ValueError
        If a buffer is not contiguous, or all of them are empty.
    """

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
        """Bytes [start, stop) as views of the pieces. Raises ValueError if the range is outside of the sequence."""
        return within(self._views, self._stops, start, stop)


def stops_of(views: Sequence[Any]) -> list[int]:
    """The byte of the sequence at which each view ends."""
    stops = list(accumulate(view.nbytes for view in views))
    if not stops:
        raise ValueError("a transfer needs at least one byte")
    return stops


def within(views: Sequence[Any], stops: Sequence[int], start: int, stop: int) -> list[Any]:
    """Bytes [start, stop) as parts of the views. The views must not be empty."""
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
    """Tensors, one after another, as a source or a sink with one cut. Used for GPU memory, over a transport that reaches it.

    Parameters
    ----------
    pieces : iterable of torch.Tensor
        One-dimensional, contiguous, uint8. Empty ones are skipped.

    Raises
    ------
    ValueError
        If a tensor has another shape or dtype, or all of them are empty.
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
        """Bytes [start, stop) as views of the tensors."""
        return within(self._views, self._stops, start, stop)


class PiecesSource(Pieces):
    """Host buffers as a source. ends: the byte at which each cut ends; without it there is one cut, the whole."""

    def __init__(self, pieces: Iterable[Buffer], ends: Sequence[int] = ()) -> None:
        super().__init__(pieces)
        self.ends = tuple(ends) or (self.size,)
        if self.ends[-1] != self.size:
            raise ValueError(f"the last cut ends at byte {self.ends[-1]}, but the pieces hold {self.size}")


class PiecesSink(Pieces):
    """Writable host buffers as a sink, such as the runs of pool blocks that were reserved for a transfer."""

    def __init__(self, pieces: Iterable[Buffer]) -> None:
        super().__init__(pieces)
        if any(view.readonly for view in self._views):
            raise ValueError("a received transfer needs writable memory; one of these pieces is read-only")


class BufferSink(PiecesSink):
    """A sink of one new bytearray, `data`. What has been received so far lies at its beginning."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        super().__init__([self.data])

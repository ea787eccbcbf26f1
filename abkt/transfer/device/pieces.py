"""Pieces of memory that is not the host's: one-dimensional uint8 tensors. Where host bytes are needed of them, they are copied here.

Copies go over a stream of their own, so they wait for no kernel of the thread that computes; whoever hands a piece out sees to it that
what it holds has been computed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from abkt.transfer.protocol.frame import Buffer

if TYPE_CHECKING:
    import torch

Piece: TypeAlias = Union[Buffer, "torch.Tensor"]  # to be read
Space: TypeAlias = Union[memoryview, "torch.Tensor"]  # to be written

_STREAMS = threading.local()


def on_device(piece: Piece | Space) -> bool:
    return not isinstance(piece, bytes | bytearray | memoryview)


def fetched(piece: Piece) -> Buffer:
    """The bytes of a piece in the host's memory: its own, or a copy."""
    if isinstance(piece, bytes | bytearray | memoryview):
        return piece
    with beside(piece.device):
        return piece.cpu().numpy().data


@contextmanager
def hosted(spaces: Sequence[Space]) -> Iterator[Sequence[memoryview]]:
    """Host memory to be written in the place of these spaces; what is on a device is copied there at the end, unless that is an error."""
    host = [space if isinstance(space, memoryview) else memoryview(bytearray(len(space))) for space in spaces]
    yield host
    for space, data in zip(spaces, host, strict=True):
        if not isinstance(space, memoryview):
            import torch

            with beside(space.device):
                space.copy_(torch.frombuffer(data, dtype=torch.uint8))


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Work of this thread on a stream of its own, done when this ends. On a CPU nothing has to be arranged."""
    if device.type != "cuda":
        yield
        return
    import torch

    with torch.cuda.device(device), torch.cuda.stream(_stream(torch, device)):
        yield
        torch.cuda.current_stream(device).synchronize()


def _stream(torch: Any, device: Any) -> Any:
    """Of this thread."""
    streams = _STREAMS.__dict__.setdefault("of", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]

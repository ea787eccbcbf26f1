"""Copies between tensors on a device and host memory, for the parts of a transfer that need host bytes.

The copies run on a CUDA stream of their own, so they do not wait for kernels of the thread that computes. The owner of a tensor must make
sure that its contents have been computed before it hands the tensor to a transfer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from abkt.transfer.buffers import Buffer, Piece, Space

if TYPE_CHECKING:
    import torch

_STREAMS = threading.local()


def to_host(piece: Piece) -> Buffer:
    """The bytes of a piece in host memory: the piece itself, or a copy if it is on a device."""
    if isinstance(piece, bytes | bytearray | memoryview):
        return piece
    with own_stream(piece.device):
        return piece.cpu().numpy().data


@contextmanager
def host_buffers(spaces: Sequence[Space]) -> Iterator[Sequence[memoryview]]:
    """Host memory to be written in place of `spaces`. On leaving without an error, it is copied to the spaces that are on a device."""
    host = [space if isinstance(space, memoryview) else memoryview(bytearray(len(space))) for space in spaces]
    yield host
    for space, data in zip(spaces, host, strict=True):
        if not isinstance(space, memoryview):
            import torch

            with own_stream(space.device):
                space.copy_(torch.frombuffer(data, dtype=torch.uint8))


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run this thread's GPU work on a stream of its own, and wait for it on leaving. Does nothing for a CPU."""
    if device.type != "cuda":
        yield
        return
    import torch

    with torch.cuda.device(device), torch.cuda.stream(_stream(torch, device)):
        yield
        torch.cuda.current_stream(device).synchronize()


def _stream(torch: Any, device: Any) -> Any:
    """The stream of this thread for a device."""
    streams = _STREAMS.__dict__.setdefault("of", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]

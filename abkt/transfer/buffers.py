"""The kinds of memory that a transfer reads and writes: the host's, and tensors on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
    import torch

Buffer = bytes | bytearray | memoryview  # host memory
Piece: TypeAlias = Union[Buffer, "torch.Tensor"]  # memory to be read; a tensor is one-dimensional uint8
Space: TypeAlias = Union[memoryview, "torch.Tensor"]  # memory to be written


def on_device(piece: Piece | Space) -> bool:
    """Whether the piece is a tensor rather than a host buffer."""
    return not isinstance(piece, bytes | bytearray | memoryview)

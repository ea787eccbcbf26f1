"""The device digest of a payload (NH of UMAC, see digest_oracle.py): on the GPU if any piece of it is there, else on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from abkt.transfer.buffers import Piece, on_device
from abkt.transfer.device import digest_oracle
from abkt.transfer.device.digest_oracle import ALIGN_BYTES
from abkt.transfer.device.staging import own_stream

if TYPE_CHECKING:
    import torch


def device_digest(pieces: Sequence[Piece]) -> bytes:
    """The 16-byte digest of the pieces, one after another, wherever they are. It does not depend on how the bytes are cut into pieces."""
    import torch

    parts = [piece if isinstance(piece, torch.Tensor) else _tensor(piece) for piece in pieces if len(piece)]
    devices = {part.device for part in parts if part.device.type != "cpu"}
    if not devices:
        return _packed(digest_oracle.sums(_joined(parts, torch.device("cpu"))))
    device = devices.pop()
    with own_stream(device):
        from abkt.transfer.device.digest_kernels import sums_of

        must_join = devices or not all(part.device == device for part in parts) or not _aligned(parts)
        return _packed(sums_of([_joined(parts, device)] if must_join else parts))


def _aligned(parts: Sequence[torch.Tensor]) -> bool:
    """Whether a kernel can read each part in place."""
    return all(part.is_contiguous() and part.data_ptr() % ALIGN_BYTES == 0 and len(part) % ALIGN_BYTES == 0 for part in parts)


def _joined(parts: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The parts copied into one tensor of whole words. New memory is aligned."""
    import torch

    size = sum(len(part) for part in parts)
    padding = torch.zeros(-size % ALIGN_BYTES, dtype=torch.uint8, device=device)
    return torch.cat([*(part.to(device) for part in parts), padding])


def _tensor(piece: Piece) -> torch.Tensor:
    import torch

    assert not on_device(piece)
    return torch.frombuffer(bytearray(piece) if memoryview(piece).readonly else piece, dtype=torch.uint8)  # type: ignore[arg-type]


def _packed(found: torch.Tensor) -> bytes:
    return found.cpu().numpy().astype("<i8").tobytes()

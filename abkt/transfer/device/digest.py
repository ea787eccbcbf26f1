"""A digest of bytes that a GPU makes as fast as it reads them, and that does not depend on how they are cut: it finds accidents.

Two sums over the 64-bit words w of a payload, little-endian, the last one filled up with zeros:
    sum of ((low half of w_i + k_2i) mod 2^32) * ((high half of w_i + k_2i+1) mod 2^32), mod 2^64,
each with keys of its own, hashes of their place. Being sums, they are taken in any order and of any pieces. Source: NH of UMAC (Black,
Halevi, Krawczyk, Krovetz, Rogaway, CRYPTO 1999); its keys are secret, and these are not.
`sums` is the definition, in torch; on a GPU nh_kernels.py makes the same. The length of the payload is not in it, but in the header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from abkt.transfer.device.pieces import Piece, beside, on_device

if TYPE_CHECKING:
    import torch

WORD_BYTES = 8
ALIGN_BYTES = 16  # of the pieces that a kernel reads where they are
DIGESTS = 2
STEP_WORDS = 1 << 16
LOW = 0xFFFFFFFF
SPREAD = 0x9E3779B1
MIX = (0x85EBCA6B, 0xC2B2AE35)


def digest(pieces: Sequence[Piece]) -> bytes:
    """Of the pieces one after another, wherever they are; 16 bytes."""
    import torch

    parts = [piece if isinstance(piece, torch.Tensor) else _tensor(piece) for piece in pieces if len(piece)]
    devices = {part.device for part in parts if part.device.type != "cpu"}
    if not devices:
        return _packed(sums(_joined(parts, torch.device("cpu"))))
    device = devices.pop()
    with beside(device):
        from abkt.transfer.device.digest_kernels import sums_of

        together = devices or not all(part.device == device for part in parts) or not _apart(parts)
        return _packed(sums_of([_joined(parts, device)] if together else parts))


def sums(data: torch.Tensor) -> torch.Tensor:
    """[2] int64, mod 2^64. data: uint8, a whole number of words."""
    import torch

    halves = data.view(torch.int32).view(-1, 2)
    found = torch.zeros(DIGESTS, dtype=torch.int64, device=data.device)
    for start in range(0, len(halves), STEP_WORDS):
        step = halves[start : start + STEP_WORDS].long()
        word = torch.arange(start, start + len(step), device=data.device)
        for number in range(DIGESTS):
            low, high = ((step[:, half] + _key(word * 2 * DIGESTS + 2 * number + half)) & LOW for half in (0, 1))
            found[number] += (low * high).sum()
    return found


def _key(place: torch.Tensor) -> torch.Tensor:
    """The finaliser of MurmurHash3 in 32 bits; products wrap in 64, of which the low 32 are right."""
    key = (place * SPREAD) & LOW
    for shift, mix in ((16, MIX[0]), (13, MIX[1])):
        key = ((key ^ (key >> shift)) * mix) & LOW
    return key ^ (key >> 16)


def _apart(parts: Sequence[torch.Tensor]) -> bool:
    """Whether a kernel can read each where it is."""
    return all(part.is_contiguous() and part.data_ptr() % ALIGN_BYTES == 0 and len(part) % ALIGN_BYTES == 0 for part in parts)


def _joined(parts: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """One tensor of whole words; aligned, as new memory is."""
    import torch

    size = sum(len(part) for part in parts)
    filling = torch.zeros(-size % ALIGN_BYTES, dtype=torch.uint8, device=device)
    return torch.cat([*(part.to(device) for part in parts), filling])


def _tensor(piece: Piece) -> torch.Tensor:
    import torch

    assert not on_device(piece)
    return torch.frombuffer(bytearray(piece) if memoryview(piece).readonly else piece, dtype=torch.uint8)  # type: ignore[arg-type]


def _packed(found: torch.Tensor) -> bytes:
    return found.cpu().numpy().astype("<i8").tobytes()

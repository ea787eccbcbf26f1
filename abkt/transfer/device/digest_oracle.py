"""The definition of the device digest, in torch: NH of UMAC, with public keys. digest_kernels.py computes the same sums on a GPU.

The digest has two sums over the 64-bit words w of a payload (little-endian; the last word is padded with zeros):
    sum of ((low half of w_i + k_2i) mod 2^32) * ((high half of w_i + k_2i+1) mod 2^32), mod 2^64.
Each sum has keys k of its own, which are hashes of their index. Because they are sums, parts of a payload can be added in any order.
It finds accidental damage; since the keys are public, it does not stop an attacker. The length of the payload is not part of the digest:
it is in the frame header.

Source: NH of UMAC (Black, Halevi, Krawczyk, Krovetz, Rogaway, CRYPTO 1999; RFC 4418), whose keys are secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORD_BYTES = 8
ALIGN_BYTES = 16  # a kernel reads pieces in place if their address and size are multiples of this
DIGESTS = 2
STEP_WORDS = 1 << 16
LOW = 0xFFFFFFFF
SPREAD = 0x9E3779B1
MIX = (0x85EBCA6B, 0xC2B2AE35)


def sums(data: torch.Tensor) -> torch.Tensor:
    """Both sums of a payload: int64 [2], modulo 2^64. data: uint8, a whole number of words."""
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


def _key(index: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's 32-bit finaliser. The int64 products wrap, but their low 32 bits are exact."""
    key = (index * SPREAD) & LOW
    for shift, mix in ((16, MIX[0]), (13, MIX[1])):
        key = ((key ^ (key >> shift)) * mix) & LOW
    return key ^ (key >> 16)

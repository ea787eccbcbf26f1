"""The nested quantiser, written to be read: the oracle of every fast path, and the path that runs where no compiler is.

A group (a channel of K over the tile's tokens, a token of V over the channels) is coded by its offset `low`, a `step` and 8-bit codes

    code = floor((x - low) / step),  in 0..255        x at b bits = low + step * (code with its last 8 - b bits cleared + 2**(7 - b))

so the top b bits of a code *are* the b-bit code, reconstructed at the middle of their bin, and |x - decoded| <= step * 2**(7 - b) plus
the rounding to the pool's dtype. V is coded less the centre of its channels (centre.py). The offset of K is the least value, which the
pool's dtype holds exactly, so a bias of 100 times the spread costs nothing; that of V is rounded down. The step is range / 256, rounded
up to the top twelve bits of a float32 (8 of exponent, 4 of mantissa: 2 % too large on average), so step * code is exact in float32 and
all backends agree bit by bit. At 0 bits a group is its mean, carried as a 4-bit code of the same quantiser and packed under the step:
32 bits a group in all.

Not here yet: 1, 3 and 6 bits, symmetric groups, a range fitted to the statistics, centroid reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkt.codec.cells import BITS, WIDTHS

LIMIT = {torch.bfloat16: 2.0**48, torch.float32: 2.0**48, torch.float16: 2.0**14}
"""Cells with a value outside +-LIMIT (or NaN) travel exact: within it no sum of squares and no reconstruction overflows."""

MIN_STEP = 2.0**-64  # keeps 1 / step and squared errors normal; a group of smaller range lands in the first bins
SHIFTS = (6, 4, 0)  # of each pass in the code
GROUP_DIM = (-2, -1)  # what a group runs over in [..., tokens, head_dim]: tokens for K, channels for V


@dataclass(frozen=True, slots=True)
class Quantized:
    """codes [..., tokens, head_dim] uint8; low, step float32 and mean int32 (4 bits), one a group, with the grouped dim of extent 1."""

    codes: torch.Tensor
    low: torch.Tensor
    step: torch.Tensor
    mean: torch.Tensor


def travels_exact(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Which cells of x [..., tokens, head_dim] float32 hold a value that is not finite, or too large to code in `dtype`: [...] bool."""
    return ~(x.abs() < LIMIT[dtype]).all(-1).all(-1)


def quantize(x: torch.Tensor, dim: int, dtype: torch.dtype) -> Quantized:
    """Nested 8-bit codes of cells x [..., tokens, head_dim] float32, in groups along `dim`, for a pool of `dtype`.

    x: K as the pool holds it, V less its centre. Every |x| must be below LIMIT.
    """
    low = x.amin(dim, keepdim=True) + 0.0  # -0 becomes 0, so that equal values are equal bytes
    if dim == GROUP_DIM[1]:
        low = (low - low.abs() / 256).to(dtype).float()  # nothing in the group is below it
    step = round_up_step((x.amax(dim, keepdim=True) - low) / 256)
    inverse = torch.where(step > 0, 1 / step, 0.0)
    codes = ((x - low) * inverse).to(torch.int32).clamp(0, 255)
    size = x.shape[dim]
    mean = (2 * codes.sum(dim, keepdim=True) + size) // (32 * size)  # of the bins' middles, in sixteenths of the range
    return Quantized(codes.to(torch.uint8), low, step, mean.to(torch.int32))


def round_up_step(step: torch.Tensor) -> torch.Tensor:
    """The least float32 of four mantissa bits that is at least `step` and MIN_STEP; 0 stays 0."""
    kept = torch.where(step > 0, step.clamp_min(MIN_STEP), 0.0)
    return ((kept.view(torch.int32) + (1 << 19) - 1) >> 19 << 19).view(torch.float32)


def reconstruct(coded: Quantized, bits: int) -> torch.Tensor:
    """What `bits` bits of the codes say of x, float32; the caller adds the centre and rounds to the pool's dtype."""
    if bits == 0:
        return coded.low + coded.step * (coded.mean * 16 + 8).float().expand(coded.codes.shape)
    cleared = coded.codes.int() >> (8 - bits) << (8 - bits)
    return coded.low + coded.step * (cleared.float() + 2.0 ** (7 - bits))


def squared_errors(x: torch.Tensor, coded: Quantized, centre: torch.Tensor, depth_bits: int) -> torch.Tensor:
    """Squared error of each cell that is left after each pass, metadata first: [..., passes + 1] float64.

    x: [..., tokens, head_dim] as the pool holds it, and its dtype is what the decoded values are rounded to.
    """
    decoded = [(reconstruct(coded, bits) + centre).to(x.dtype) for bits in BITS if bits <= depth_bits]
    return torch.stack([(x.double() - y.double()).square().sum((-2, -1)) for y in decoded], -1)


def pack_pass(codes: torch.Tensor, index: int) -> torch.Tensor:
    """Pass `index` (1 to 3) of codes [..., tokens, head_dim] as bytes [..., quarters or halves of the tokens, head_dim].

    A tile is four quarters of ceil(tokens / 4) tokens, the last padded with code 0. A byte of two-bit passes holds the same token of
    quarters 0 1 2 3, lowest bits first; of the four-bit pass, of quarters 0 2 in its first half and 1 3 in its second. So packing is
    elementwise between quarters, with no shuffle between lanes.
    """
    q = _quarters((codes >> SHIFTS[index - 1]) & ((1 << WIDTHS[index - 1]) - 1))
    if WIDTHS[index - 1] == 2:
        return q[0] | q[1] << 2 | q[2] << 4 | q[3] << 6
    return torch.cat((q[0] | q[2] << 4, q[1] | q[3] << 4), -2)


def unpack_pass(packed: torch.Tensor, index: int, tokens: int) -> torch.Tensor:
    """The bits of pass `index` in their place in codes [..., tokens, head_dim]: the inverse of `pack_pass`."""
    if WIDTHS[index - 1] == 2:
        quarters = [(packed >> shift) & 3 for shift in (0, 2, 4, 6)]
    else:
        first, second = packed.chunk(2, -2)
        quarters = [first & 15, second & 15, first >> 4, second >> 4]
    return (torch.cat(quarters, -2) << SHIFTS[index - 1])[..., :tokens, :]


def _quarters(codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    padding = -codes.shape[-2] % 4
    return torch.nn.functional.pad(codes, (0, 0, 0, padding)).chunk(4, -2)


def pack_metadata(coded: Quantized, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """low of every group in `dtype`, then step and mean of every group in 16 bits: [..., groups * (itemsize + 2)] uint8."""
    low = coded.low.squeeze(dim).to(dtype).contiguous()
    step_mean = (coded.step.squeeze(dim).contiguous().view(torch.int32) >> 15) | coded.mean.squeeze(dim)
    low_bytes = low.view(torch.uint8)
    return torch.cat((low_bytes, step_mean.to(torch.uint16).view(torch.uint8)), -1)


def unpack_metadata(packed: torch.Tensor, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """low, step, mean as in Quantized, from bytes [..., groups * (itemsize + 2)]."""
    split = packed.shape[-1] // (dtype.itemsize + 2) * dtype.itemsize
    low = packed[..., :split].contiguous().view(dtype).float()
    step_mean = packed[..., split:].contiguous().view(torch.uint16).to(torch.int32)
    step = (step_mean >> 4 << 19).view(torch.float32)
    return low.unsqueeze(dim), step.unsqueeze(dim), (step_mean & 15).unsqueeze(dim)

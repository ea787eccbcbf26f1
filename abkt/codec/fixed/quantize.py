"""The nested quantiser of the fixed coder, written to be read. It is the reference for all backends, and runs where there is no compiler.

A group (a channel of K over the tile's tokens, or a token of V over the channels) is coded by its offset `low`, a `step` and 8-bit codes

    code = floor((x - low) / step),  in 0..255

so the top b bits of a code *are* the b-bit code. The centres of V's channels are subtracted first (centre.py). The offset of K is the least
value, which the pool's dtype holds exactly, so a bias of 100 times the spread costs nothing; the offset of V is rounded down. The step is
range / 256, rounded up to the top twelve bits of a float32 (8 of exponent, 4 of mantissa: 2 % too large on average).

Reconstruction. At 0 bits every value of a group becomes the group's mean, which is carried as a 4-bit code of the same quantiser, packed
below the step: 32 bits per group in all. At b bits a value becomes the middle of its bin, moved toward the mean by the share that minimises
the squared error of a Gaussian to first order in the bin's width D = 2**(8 - b), for values of variance s2 (both in steps):

    x at b bits = low + step * (middle + share * (mean - middle)),   share = D**2 / (D**2 + 12 * s2)

and by less as s2 approaches the variance of a uniform density. Each cell has one of 16 classes of s2, and the share is a multiple of 1/32.
So all products below are exact in float32, and all backends agree bit by bit.

Range. A depth of 1 to 3 bits need not reach the outermost values. A cell whose values are concentrated in the middle (from class
NARROW_FROM on) is coded over the inner 13/16 of each group's range, or 15/16 at 3 bits. Deeper streams use the whole range, since a
clipped value is never refined.

Errors. The squared error after each pass is measured on one eighth of the tokens of a tile (`measured`), because measuring all of them
would take longer than coding. On the probe model the resulting order leaves at most 0.4 % more distortion at equal bytes, and the
distortion that a stream states is right within 0.7 %.

Symmetric groups, without an offset, were not built. They would save 16 bits per group, but widen the range of 128 normal values by 8 %,
which costs as many bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkt.codec.cells import BITS, WIDTHS

LIMIT = {torch.bfloat16: 2.0**48, torch.float32: 2.0**48, torch.float16: 2.0**14}
"""Cells with a value outside +-LIMIT (or NaN) travel verbatim. Within it no sum of squares and no reconstruction overflows."""

TINY = 2.0**-48
"""Cells whose values all lie within +-TINY travel verbatim too, unless all are 0: the steps that they need come near MIN_STEP."""

MIN_STEP = 2.0**-64  # keeps 1 / step and squared errors normal numbers; a group of smaller range uses its first bins only
NO_STEP = MIN_STEP / 256  # a group whose step would be smaller has step 0: half a bin of MIN_STEP would be more than its range
SHIFTS = tuple(8 - bits for bits in BITS[1:])  # the lowest bit of each pass in the code
GROUP_DIM = (-2, -1)  # the dimension of [..., tokens, channels] that a group runs over: tokens for K, channels for V

CLASSES = 16
VARIANCES = tuple(round(7_000 / 2 ** (i / 2)) for i in range(CLASSES))  # the s2 that each class stands for, in steps squared
LIMITS = tuple(round(7_000 / 2 ** (i / 2 + 0.25)) for i in range(CLASSES - 1))  # between one class and the next
UNIFORM, NORMAL = 5_461, 2_475  # s2 of a uniform group, and of 128 normal values


def _share(s2: int, width: int) -> int:
    density = min(1.0, max(0.0, (UNIFORM - s2) / (UNIFORM - NORMAL)))  # the centroids of a uniform density are in the middle of the bins
    return round(32 * density * width * width / (width * width + 12 * s2))


SHARES = tuple(tuple(_share(s2, 2 ** (8 - bits)) for bits in BITS) for s2 in VARIANCES)
"""[class][passes]: thirty-seconds of the way from a bin's middle to the mean."""

MEASURED_WHOLE = 64  # tokens; all tokens of a shorter tile are measured

NARROW_FROM = 3  # the first class whose cells are narrowed: that of 128 normal values
MARGINS = {1: (1 / 8, 1 / 32), 2: (1 / 8, 1 / 32), 3: (1 / 32, 0.0)}
"""By depth in bits: a narrowed range omits a share of (first - second) of the whole range at each end. Powers of two, so that products are
exact."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """Quantised cells. codes: [..., tokens, channels] uint8. low, step: float32, and mean: int32 (4 bits), one per group; the dimension
    that groups run over has length 1. spread: [...] int32, the class of each cell's variance."""

    codes: torch.Tensor
    low: torch.Tensor
    step: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor


def travels_verbatim(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Which cells of x [..., tokens, channels] float32 hold a value that is not finite, or too large to be coded in `dtype`, or only values
    that are too small: [...] bool."""
    most = x.abs().amax((-2, -1))  # NaN if any value is
    return ~(most < LIMIT[dtype]) | ((most > 0) & (most < TINY))


def quantize(x: torch.Tensor, dim: int, dtype: torch.dtype, depth_bits: int = 8) -> Quantized:
    """Nested 8-bit codes of cells.

    Parameters
    ----------
    x : [..., tokens, channels] float32: K as the pool holds it, or V minus its centre. Every |x| must be below LIMIT.
    dim : the dimension that groups run over, -2 for K and -1 for V (`GROUP_DIM`).
    dtype : of the pool.
    depth_bits : how many bits of the codes will be sent at most; below 4 it decides the range of the codes.

    Returns
    -------
    The codes, and offset, step and mean of each group.
    """
    least = x.amin(dim, keepdim=True) + 0.0  # -0 becomes 0, so that equal values give equal bytes
    if dim == GROUP_DIM[1]:
        least = (least - least.abs() / 256).to(dtype).float()  # nothing in the group is below it
    extent = x.amax(dim, keepdim=True) - least
    coded = _coded(x, dim, least, extent)
    if depth_bits not in MARGINS:
        return coded
    outer, inner = MARGINS[depth_bits]
    margin = extent * outer - extent * inner
    narrow = _coded(x, dim, (least + margin).to(dtype).float(), extent - 2 * margin)
    chosen = (coded.spread >= NARROW_FROM)[..., None, None]

    def either(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.where(chosen.reshape(b.shape) if b.dim() < chosen.dim() else chosen, a, b)

    fields = ("codes", "low", "step", "mean", "spread")
    return Quantized(**{name: either(getattr(narrow, name), getattr(coded, name)) for name in fields})


def _coded(x: torch.Tensor, dim: int, low: torch.Tensor, extent: torch.Tensor) -> Quantized:
    step = round_up_step(extent / 256)
    inverse = torch.where(step > 0, 1 / step, 0.0)
    codes = ((x - low) * inverse).clamp(0, 255).to(torch.int32)
    size = x.shape[dim]
    sums, squares = codes.sum(dim, keepdim=True), codes.square().sum(dim, keepdim=True)
    mean = (2 * sums + size) // (32 * size)  # the mean of the bins' middles, in sixteenths of the range
    middle = mean * 16 + 8
    squared = squares - 2 * middle * sums + size * middle * middle  # of each group, from the mean as it is carried
    variance = squared.sum((-2, -1)) // (x.shape[-2] * x.shape[-1])
    spread = sum((variance < limit).to(torch.int32) for limit in LIMITS)
    assert isinstance(spread, torch.Tensor)
    return Quantized(codes.to(torch.uint8), low, step, mean.to(torch.int32), spread)


def round_up_step(step: torch.Tensor) -> torch.Tensor:
    """The least float32 of four mantissa bits that is at least `step` and MIN_STEP; 0 where step is below NO_STEP."""
    kept = torch.where(step >= NO_STEP, step.clamp_min(MIN_STEP), 0.0)
    return ((kept.contiguous().view(torch.int32) + (1 << 19) - 1) >> 19 << 19).view(torch.float32)


def reconstruct(coded: Quantized, passes: int) -> torch.Tensor:
    """x, decoded from the first `passes` passes of the codes, float32. The caller adds the centre and rounds to the pool's dtype."""
    mean = (coded.mean * 16 + 8).float()
    if passes == 0:
        return (coded.low + coded.step * mean).expand(coded.codes.shape)
    shift = SHIFTS[passes - 1]
    middle = (coded.codes.int() >> shift << shift).float() + 2.0 ** (shift - 1)
    share = torch.tensor(SHARES, device=mean.device)[coded.spread.long(), passes][..., None, None] / 32
    return coded.low + (middle * (coded.step * (1 - share)) + mean * (coded.step * share))  # exact, until the sum with low is rounded


def squared_errors(x: torch.Tensor, coded: Quantized, centre: torch.Tensor, passes: int) -> torch.Tensor:
    """Squared error of each token after each pass, after the metadata first: [..., tokens, passes + 1] float64.

    x: [..., tokens, channels] as the pool holds it; decoded values are rounded to its dtype.
    """
    decoded = [(reconstruct(coded, p) + centre).to(x.dtype) for p in range(passes + 1)]
    return torch.stack([(x.double() - y.double()).square().sum(-1) for y in decoded], -1)


def measured(tokens: int, strip: int, tile: int) -> slice:
    """The tokens of a tile whose errors are measured: an eighth of them, a different one in each cell; all if there are fewer than
    MEASURED_WHOLE."""
    if tokens < MEASURED_WHOLE:
        return slice(0, tokens)
    eighth, part = -(-tokens // 8), (strip + tile) % 8
    return slice(part * eighth, min(tokens, (part + 1) * eighth))


def cell_errors(by_token: torch.Tensor, step: torch.Tensor, chosen: slice) -> torch.Tensor:
    """Squared error of a cell after each pass, [passes + 1], estimated from its measured tokens.

    by_token: [tokens, passes + 1], from squared_errors. step: [tokens, 1] for V, [1, channels] for K. Errors are proportional to the square
    of the step, so the sum over the measured tokens is scaled by it to all tokens. If the measured tokens have no step at all, all tokens
    are measured.
    """
    squared = step.double().square().sum(-1).expand(len(by_token))
    if squared[chosen].sum() == 0:
        return by_token.sum(0)
    return by_token[chosen].sum(0) * (squared.sum() / squared[chosen].sum())


def pack_pass(codes: torch.Tensor, index: int) -> torch.Tensor:
    """Pass `index` (1 to 6) of codes [..., tokens, channels] as bytes [..., width * eighths of the tokens, channels].

    A tile is divided into eight eighths of ceil(tokens / 8) tokens, the last padded with code 0. A byte of a one-bit pass holds the same
    token of eighths 0 to 7, lowest bit first. In a two-bit pass a byte of the first half holds the same token of eighths 0 to 3, and a byte
    of the second half that of eighths 4 to 7. So packing is elementwise between eighths and needs no shuffle between lanes.
    """
    width = WIDTHS[index - 1]
    per_byte = 8 // width
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -codes.shape[-2] % 8))
    e = ((padded >> SHIFTS[index - 1]) & ((1 << width) - 1)).chunk(8, -2)
    halves = [sum(e[first + i] << (width * i) for i in range(per_byte)) for first in range(0, 8, per_byte)]
    return torch.cat([h for h in halves if isinstance(h, torch.Tensor)], -2)


def unpack_pass(packed: torch.Tensor, index: int, tokens: int) -> torch.Tensor:
    """The bits of pass `index` in their place in codes [..., tokens, channels]: the inverse of `pack_pass`."""
    width = WIDTHS[index - 1]
    mask = (1 << width) - 1
    eighths = [(half >> (width * i)) & mask for half in packed.chunk(width, -2) for i in range(8 // width)]
    return (torch.cat(eighths, -2) << SHIFTS[index - 1])[..., :tokens, :]


def pack_metadata(coded: Quantized, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """low of every group in `dtype`, then step and mean of every group in 16 bits: [..., groups * (itemsize + 2)] uint8."""
    low = coded.low.squeeze(dim).to(dtype).contiguous()
    step_mean = (coded.step.squeeze(dim).contiguous().view(torch.int32) >> 15) | coded.mean.squeeze(dim)
    return torch.cat((low.view(torch.uint8), step_mean.to(torch.uint16).view(torch.uint8)), -1)


def unpack_metadata(packed: torch.Tensor, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """low, step, mean as in Quantized, from bytes [..., groups * (itemsize + 2)]."""
    split = packed.shape[-1] // (dtype.itemsize + 2) * dtype.itemsize
    low = packed[..., :split].contiguous().view(dtype).float()
    step_mean = packed[..., split:].contiguous().view(torch.uint16).to(torch.int32)
    step = (step_mean >> 4 << 19).view(torch.float32)
    return low.unsqueeze(dim), step.unsqueeze(dim), (step_mean & 15).unsqueeze(dim)

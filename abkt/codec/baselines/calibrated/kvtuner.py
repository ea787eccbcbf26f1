"""KVTuner (arXiv 2502.04420): a pair of precisions for K and V in each layer, chosen on calibration texts; KIVI's codes.

The authors (github.com/KexuanZhang/KVTuner) search the Pareto front of pairs of 8, 4 and 2 bits, with groups of 32 and a residual of 32
tokens in their KIVI mode. Here the loss of a pair is measured by Fisher information, which needs no search: the pairs of least loss plus
price times bits, with the price that gives the mean number of bits that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from abkt.codec.baselines.calibrated.kv import CalibrationKV
from abkt.codec.baselines.layerwise import LayerWise, losses

PRECISIONS = (2, 4, 8)
STEPS = 60


def fit(calibration: CalibrationKV, mean_bits: float, name: str = "") -> LayerWise:
    """The precisions of K and of V in each layer, at most mean_bits bits a value on average."""
    fisher, heads = calibration.of_heads, calibration.kv[0].shape[2]
    cost = torch.stack([torch.stack([losses(x, fisher, bits) for x in calibration.kv]).sum((0, 3)) for bits in PRECISIONS])
    chosen = allocated(cost, torch.tensor(PRECISIONS, dtype=torch.float64), mean_bits)
    bits = tuple(tuple((PRECISIONS[int(i)],) * heads for i in layer) for layer in chosen)
    return LayerWise(name or f"kvtuner{mean_bits:g}", bits)


def allocated(cost: torch.Tensor, bits: torch.Tensor, mean_bits: float) -> torch.Tensor:
    """For each place the choice of least cost + price * bits, at the least price at which the mean of bits is at most mean_bits.

    cost: [choices, ...]. bits: [choices], in ascending order. Raises ValueError where even the fewest bits are more.
    """
    if float(bits[0]) > mean_bits:
        raise ValueError(f"a mean of {mean_bits:g} bits cannot be reached; the fewest are {float(bits[0]):g}")
    cost = cost.double()

    def at(price: float) -> torch.Tensor:
        return (cost + price * bits.view(-1, *[1] * (cost.ndim - 1))).argmin(0)

    return bits_within(at, bits, mean_bits, float(cost.max()) + 1e-30)


def bits_within(at: Callable[[float], torch.Tensor], bits: torch.Tensor, mean_bits: float, highest: float) -> torch.Tensor:
    """The choices of the least price, by bisection of its logarithm below `highest`, whose mean of bits is at most mean_bits."""
    low, high = highest * 1e-15, highest * 10
    for _ in range(STEPS):
        price = (low * high) ** 0.5
        if float(bits[at(price)].mean()) > mean_bits:
            low = price
        else:
            high = price
    return at(high)

"""TurboQuant (arXiv 2504.19874), the form of least squared error: a random rotation, then the best scalar code of a normal distribution.

Each vector of a token and head is divided by its length, which travels as float16, and rotated. A coordinate is then nearly normal with
variance 1 / head_dim, so one Lloyd-Max codebook serves all, and no scale or zero is needed: bits + 16 / head_dim bits a value. Nothing is
calibrated. Left out: the one-bit residual (QJL) of the form for unbiased inner products, and the split into two sets of channels that the
paper uses for 2.5 and 3.5 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.baselines.rotation import rotation
from abkt.codec.bits import pack, packed_bytes, unpack


@lru_cache
def lloyd_max(bits: int) -> torch.Tensor:
    """The 2**bits points of least squared error for a standard normal variable, float32."""
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    points = normal.icdf((torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits)
    for _ in range(500):
        edges = torch.cat((torch.tensor([-40.0]), (points[1:] + points[:-1]) / 2, torch.tensor([40.0])))
        density, below = normal.log_prob(edges).exp(), normal.cdf(edges)
        points = -density.diff() / below.diff()
    return points.float()


@dataclass(frozen=True)
class TurboQuant(MessageBaseline):
    """bits: of a coordinate, 1 to 8."""

    name: str
    bits: int

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        length = x.float().norm(dim=-1).half()
        if not length.isfinite().all():
            raise ValueError("KV is not finite, or longer than what float16 can hold; send it raw or lossless")
        dim = x.shape[-1]
        turned = x.float() @ rotation(dim).T / length.float().clamp_min(1e-30)[..., None] * dim**0.5
        points = lloyd_max(self.bits)
        codes = torch.bucketize(turned, (points[1:] + points[:-1]) / 2)
        return [length, pack(codes.to(torch.uint8), self.bits)]

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        length = body.take(torch.float16, *shape[:-1]).float()
        codes = unpack(body.take(torch.uint8, packed_bytes(torch.Size(shape).numel(), self.bits)), self.bits, shape)
        turned = lloyd_max(self.bits)[codes.long()] * length[..., None] / shape[-1] ** 0.5
        return turned @ rotation(shape[-1])

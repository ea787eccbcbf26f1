"""FP8 (e4m3: 4 bits of exponent, 3 of mantissa, greatest value 448), with one float32 scale for each (layer, kind, head)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkt.codec.baselines.base import Body, MessageBaseline

GREATEST = 448.0


@dataclass(frozen=True)
class Fp8(MessageBaseline):
    """Each (layer, kind, head) is scaled so that its greatest value becomes 448. A head of zeros has scale 0."""

    name: str = "fp8"

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        scale = x.float().abs().amax((-2, -1)) / GREATEST
        if not scale.isfinite().all():
            raise ValueError("KV is not finite; it cannot be coded in FP8")
        codes = (x.float() / torch.where(scale > 0, scale, 1.0)[..., None, None]).clamp(-GREATEST, GREATEST)
        return [scale, codes.to(torch.float8_e4m3fn).view(torch.uint8)]

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        scale = body.take(torch.float32, *shape[:3])
        return body.take(torch.uint8, *shape).view(torch.float8_e4m3fn).float() * scale[..., None, None]

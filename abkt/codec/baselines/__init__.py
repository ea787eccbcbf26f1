"""Published KV codecs to compare with, one file each, behind one interface (base.py). Every message is counted to its last byte.

For the quality study and for tests; `ALL` lists them with the settings that are compared, and `calibrated/` holds those that calibrate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.codec.baselines.base import Baseline
    from abkt.codec.baselines.cachegen import CacheGenCodec
    from abkt.codec.baselines.fp8 import Fp8
    from abkt.codec.baselines.kivi import Kivi
    from abkt.codec.baselines.layers import Layers
    from abkt.codec.baselines.lynx import LynxCodec
    from abkt.codec.baselines.registry import ALL, LOSSLESS
    from abkt.codec.baselines.tiers import Tiers
    from abkt.codec.baselines.uniform import Uniform

__all__ = ["ALL", "LOSSLESS", "Baseline", "CacheGenCodec", "Fp8", "Kivi", "Layers", "LynxCodec", "Tiers", "Uniform"]
__getattr__ = exporter(
    __name__,
    {
        "ALL": "registry", "LOSSLESS": "registry",
        "Baseline": "base", "CacheGenCodec": "cachegen", "Fp8": "fp8", "Kivi": "kivi", "Layers": "layers",
        "LynxCodec": "lynx", "Tiers": "tiers", "Uniform": "uniform",
    },
)  # fmt: skip

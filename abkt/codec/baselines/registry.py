"""All baselines that need no calibration, as the quality study compares them."""

from __future__ import annotations

from abkt.codec.baselines.ans import Ans
from abkt.codec.baselines.base import Baseline
from abkt.codec.baselines.cachegen import CacheGenCodec
from abkt.codec.baselines.fp8 import Fp8
from abkt.codec.baselines.hadamard import Hadamard
from abkt.codec.baselines.kivi import Kivi
from abkt.codec.baselines.layers import Layers
from abkt.codec.baselines.lynx import LynxCodec
from abkt.codec.baselines.splitzip import SplitZip
from abkt.codec.baselines.tiers import Tiers
from abkt.codec.baselines.turboquant import TurboQuant
from abkt.codec.baselines.uniform import Uniform

ALL: tuple[Baseline, ...] = (
    Uniform("int8", 8),
    Uniform("int4", 4),
    Uniform("int2", 2),
    Kivi("kivi4", 4),
    Kivi("kivi2", 2),
    Fp8(),
    CacheGenCodec(),
    LynxCodec("lynx8", refined=True),
    LynxCodec("lynx4", refined=False),
    Tiers("spectrum"),
    Tiers("random", seed=0),
    Layers(),
    TurboQuant("turbo4", 4),
    TurboQuant("turbo3", 3),
    TurboQuant("turbo2", 2),
    Hadamard("hadamard4", 4),
    Hadamard("hadamard3", 3),
)

LOSSLESS: tuple[Baseline, ...] = (SplitZip(), Ans())
"""Of bfloat16 only."""

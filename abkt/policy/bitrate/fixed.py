"""Raw, and one precision for everything: what is deployed today, and the baselines that adaptation has to beat."""

from __future__ import annotations

import math
from dataclasses import dataclass

from abkt.policy.view import Decision, GoodputSample, TransferView


@dataclass(slots=True)
class Raw:
    """bf16 as it is, in runs of adjacent blocks (FlowKV's transfer)."""

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        pass

    def delivered(self, now_s: float, distortion: float) -> None:
        pass

    def decide(self, now_s: float, view: TransferView) -> Decision:
        return Decision(mode="raw")

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return math.nan


@dataclass(slots=True)
class Fixed:
    """The same number of bits for every cell: int8, int4, int2."""

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise ValueError(f"bitrate.bits is {self.bits}; one of 2, 4, 8 is possible")

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        pass

    def delivered(self, now_s: float, distortion: float) -> None:
        pass

    def decide(self, now_s: float, view: TransferView) -> Decision:
        return Decision(mode="stream", order="uniform", cut=view.uniform.cut_of_bits(self.bits), depth_bits=self.bits)

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return math.nan

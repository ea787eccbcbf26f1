"""Raw, and one precision for everything: what is deployed today, and the baselines that adaptation has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.bitrate.base import RAW, Blind, stream
from abkt.policy.view import CoderName, Decision, TransferView


@dataclass(slots=True)
class Raw(Blind):
    """bf16 as it is, in runs of adjacent blocks (FlowKV's transfer)."""

    def decide(self, now_s: float, view: TransferView) -> Decision:
        return RAW


@dataclass(slots=True)
class Fixed(Blind):
    """The same number of bits for every cell: int8, int4, int2."""

    bits: int
    coder: CoderName = "fixed"

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise ValueError(f"bitrate.bits is {self.bits}; one of 2, 4, 8 is possible")

    def decide(self, now_s: float, view: TransferView) -> Decision:
        return stream(view, "uniform", view.uniform.cut_of_bits(self.bits), self.bits, coder=self.coder)

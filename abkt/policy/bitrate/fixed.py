"""Two policies that do not adapt: no compression, and one precision for every transfer. They are deployed today, and serve as baselines."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.policy.bitrate.base import RAW, Stateless, levels, stream
from abkt.policy.view import CoderName, Decision, TransferView


@dataclass(slots=True)
class Raw(Stateless):
    """Sends the KV bytes of the pool (bf16) unchanged, in runs of adjacent blocks (FlowKV's transfer)."""

    def decide(self, now_s: float, view: TransferView) -> Decision:
        return RAW


@dataclass(slots=True)
class Fixed(Stateless):
    """The same number of bits for every cell: int8, int4 or int2. coder: the coder of the passes."""

    bits: int
    coder: CoderName = "fixed"

    def __post_init__(self) -> None:
        levels(self)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        return stream(view, "uniform", view.curve("uniform", self.coder).cut_of_bits(self.bits), self.bits, coder=self.coder)

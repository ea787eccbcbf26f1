"""A precision drawn for each transfer: the floor that every adaptation has to beat.

The draw is a hash of the seed and of what tells transfers apart (bytes and deadline), so the one transfer gets the one precision however
often it is asked for, and asking for others changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random as Generator

from abkt.policy.bitrate.base import Blind, stream
from abkt.policy.view import Decision, TransferView


@dataclass(slots=True)
class RandomBitrate(Blind):
    """bits: what is drawn from, each as likely."""

    seed: int = 0
    bits: Sequence[int] = (8, 4, 2)

    def __post_init__(self) -> None:
        if not self.bits or not set(self.bits) <= {2, 4, 8}:
            raise ValueError(f"bitrate.bits is {self.bits}; some of 2, 4, 8 are possible")

    def decide(self, now_s: float, view: TransferView) -> Decision:
        bits = Generator(f"{self.seed} {view.raw_bytes} {view.deadline_s!r}").choice(self.bits)
        return stream(view, "uniform", view.uniform.cut_of_bits(bits), bits)

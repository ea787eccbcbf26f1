"""A random precision for each transfer: the baseline that every adaptation has to beat.

The precision is drawn from a hash of the seed, the bytes and the deadline. So a transfer gets the same precision however often `decide` is
called, and calls for other transfers change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random as Generator

from abkt.policy.bitrate.base import Stateless, stream
from abkt.policy.view import Decision, TransferView


@dataclass(slots=True)
class RandomBitrate(Stateless):
    """seed: seed of the draws. bits: the precisions, all equally likely."""

    seed: int = 0
    bits: Sequence[int] = (8, 4, 2)

    def __post_init__(self) -> None:
        if not self.bits or not set(self.bits) <= {2, 4, 8}:
            raise ValueError(f"bitrate.bits is {self.bits}; some of 2, 4, 8 are needed")

    def decide(self, now_s: float, view: TransferView) -> Decision:
        bits = Generator(f"{self.seed} {view.raw_bytes} {view.deadline_s!r}").choice(self.bits)
        return stream(view, "uniform", view.uniform.cut_of_bits(bits), bits)

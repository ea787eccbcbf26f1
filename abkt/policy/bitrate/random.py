"""A random precision for each transfer: the baseline that every adaptation has to beat.

The precision is drawn from a hash of the seed, the bytes and the deadline. So a transfer gets the same precision however often `decide` is
called, and calls for other transfers change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random as Generator

from abkt.policy.bitrate.base import Stateless, levels, stream
from abkt.policy.view import Decision, TransferView
from abkt.ranges import check_seed


@dataclass(slots=True)
class RandomBitrate(Stateless):
    """seed: seed of the draws. bits: the precisions, all equally likely."""

    seed: int = 0
    bits: Sequence[int] = (8, 4, 2)

    def __post_init__(self) -> None:
        check_seed(self)
        levels(self)

    def decide(self, now_s: float, view: TransferView) -> Decision:
        bits = Generator(f"{self.seed} {view.raw_bytes} {view.deadline_s!r}").choice(self.bits)
        return stream(view, "uniform", view.uniform.cut_of_bits(bits), bits)

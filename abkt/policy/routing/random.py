"""A random prefill node and a random decode node: the baseline that every other routing policy has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random as Generator

from abkt.policy.routing.base import DecodeLoad, PrefillLoad, RequestView
from abkt.ranges import check_seed


@dataclass(slots=True)
class RandomRouting:
    """seed: seed of the draws."""

    seed: int = 0
    _generator: Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_seed(self)
        self._generator = Generator(self.seed)

    def decide(
        self,
        now_s: float,
        request: RequestView,
        prefill: Sequence[PrefillLoad],
        decode: Sequence[DecodeLoad],
        quote_s: Callable[[int, int], float],
    ) -> tuple[int, int]:
        return self._generator.randrange(len(prefill)), self._generator.randrange(len(decode))

"""The less loaded of two random nodes, on each side. The load is almost as balanced as if all nodes were compared.

Source: Mitzenmacher, The power of two choices in randomized load balancing (IEEE TPDS 12(10), 2001). Loads as in least_loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from abkt.policy.routing.base import DecodeLoad, PrefillLoad, RequestView
from abkt.policy.routing.least_loaded import fullness
from abkt.ranges import check_seed


@dataclass(slots=True)
class PowerOfTwo:
    """seed: seed of the draws."""

    seed: int = 0
    _random: Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_seed(self)
        self._random = Random(self.seed)

    def decide(
        self,
        now_s: float,
        request: RequestView,
        prefill: Sequence[PrefillLoad],
        decode: Sequence[DecodeLoad],
        quote_s: Callable[[int, int], float],
    ) -> tuple[int, int]:
        p = min(self._two(len(prefill)), key=lambda p: prefill[p].queued_s)
        d = min(self._two(len(decode)), key=lambda d: fullness(decode[d]))
        return p, d

    def _two(self, count: int) -> tuple[int, ...]:
        """Two different indices; one if there is only one node."""
        if count == 1:
            return (0,)
        first, other = self._random.randrange(count), self._random.randrange(count - 1)
        return first, other + (other >= first)

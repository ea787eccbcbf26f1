"""The nodes of each side in turn. The decode side shifts by one whenever the same pairs would repeat, so that all pairs are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm

from abkt.policy.routing.base import DecodeLoad, PrefillLoad, RequestView


@dataclass(slots=True)
class RoundRobin:
    """Every pair in turn, whatever its load."""

    _placed: int = 0

    def decide(
        self,
        now_s: float,
        request: RequestView,
        prefill: Sequence[PrefillLoad],
        decode: Sequence[DecodeLoad],
        quote_s: Callable[[int, int], float],
    ) -> tuple[int, int]:
        turn = self._placed
        self._placed += 1
        return turn % len(prefill), (turn + turn // lcm(len(prefill), len(decode))) % len(decode)

"""Each node of each side in turn, and shifted by one when the same pair would come again, so that all pairs meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm

from abkt.policy.view import DecodeLoad, PrefillLoad, RequestView


@dataclass(slots=True)
class RoundRobin:
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

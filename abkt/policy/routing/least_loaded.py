"""The prefill node with the fewest queued seconds, the decode node with the least memory promised (then the fewest requests).

The two sides are chosen apart, and the link between them is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abkt.policy.view import DecodeLoad, PrefillLoad, RequestView


@dataclass(slots=True)
class LeastLoaded:
    def decide(
        self,
        now_s: float,
        request: RequestView,
        prefill: Sequence[PrefillLoad],
        decode: Sequence[DecodeLoad],
        quote_s: Callable[[int, int], float],
    ) -> tuple[int, int]:
        p = min(range(len(prefill)), key=lambda i: prefill[i].queued_s)
        d = min(range(len(decode)), key=lambda i: (decode[i].kv_used, decode[i].active))
        return p, d

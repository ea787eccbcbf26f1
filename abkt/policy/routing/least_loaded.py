"""The prefill node with the fewest queued seconds, the decode node with the least memory promised (then the fewest requests).

The two sides are chosen apart, and the link between them is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abkt.policy.routing.ranking import candidates
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
        return shortest_queue(prefill), emptiest(decode)


def shortest_queue(prefill: Sequence[PrefillLoad]) -> int:
    return min(candidates(prefill, 1, backlog), key=lambda p: prefill[p].queued_s)


def emptiest(decode: Sequence[DecodeLoad]) -> int:
    return min(candidates(decode, 1, fullness), key=lambda d: fullness(decode[d]))


def fullness(node: DecodeLoad) -> tuple[float, int]:
    return node.kv_used, node.active


def backlog(node: PrefillLoad) -> float:
    """Of nodes in a Ranking: orders them as queued_s does, and stands still while time passes."""
    return node.free_s  # type: ignore[attr-defined, no-any-return]

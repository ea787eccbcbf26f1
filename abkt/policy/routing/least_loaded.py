"""The prefill node with the fewest queued seconds, and the decode node with the least KV memory in use (then the fewest requests).

The two nodes are chosen independently; the link between them is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abkt.policy.routing.base import DecodeLoad, PrefillLoad, RequestView
from abkt.policy.routing.ranking import candidates


@dataclass(slots=True)
class LeastLoaded:
    """The shortest prefill queue and the least full decode node."""

    def decide(
        self,
        now_s: float,
        request: RequestView,
        prefill: Sequence[PrefillLoad],
        decode: Sequence[DecodeLoad],
        quote_s: Callable[[int, int], float],
    ) -> tuple[int, int]:
        return shortest_queue(prefill), least_full(decode)


def shortest_queue(prefill: Sequence[PrefillLoad]) -> int:
    return min(candidates(prefill, 1, backlog), key=lambda p: prefill[p].queued_s)


def least_full(decode: Sequence[DecodeLoad]) -> int:
    return min(candidates(decode, 1, fullness), key=lambda d: fullness(decode[d]))


def fullness(node: DecodeLoad) -> tuple[float, int]:
    return node.kv_used, node.active


def backlog(node: PrefillLoad) -> float:
    """The key of a Ranking of prefill nodes: it gives the order of queued_s, and does not change as time passes."""
    return node.free_s

"""The prefill node that has cached most of the prompt's prefix, unless its queue is much longer than the shortest.

    p = argmax cached(p) / isl    if that share is at least cache_threshold and queued(p) - min queued <= balance_threshold_s
    p = argmin queued(p)          otherwise

The decode node is the least full one.

Source: SGLang's cache-aware router, with its cache threshold and balance threshold (in requests there, in seconds here).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abkt.policy.routing.base import DecodeLoad, PrefillLoad, RequestView
from abkt.policy.routing.least_loaded import backlog, least_full
from abkt.policy.routing.ranking import candidates
from abkt.ranges import bound


@dataclass(slots=True)
class PrefixAware:
    """cache_threshold: share of the prompt that must be cached. balance_threshold_s: by how many seconds the queue may exceed
    the shortest. top_k: number of nodes that are compared in a large cluster: the least loaded, and those with the longest cached
    prefix."""

    cache_threshold: float = 0.1
    balance_threshold_s: float = 2.0
    top_k: int = 4

    def __post_init__(self) -> None:
        bound(self, "cache_threshold", above=0, most=1)
        bound(self, "balance_threshold_s", least=0, infinite=True)
        bound(self, "top_k", least=1)

    def decide(
        self,
        now_s: float,
        request: RequestView,
        prefill: Sequence[PrefillLoad],
        decode: Sequence[DecodeLoad],
        quote_s: Callable[[int, int], float],
    ) -> tuple[int, int]:
        looked = candidates(prefill, self.top_k, backlog, request.hash_ids)
        shortest = min(looked, key=lambda p: prefill[p].queued_s)
        if request.hash_ids:
            held = {p: prefill[p].cached_tokens(request.hash_ids) for p in looked}
            best = max(looked, key=lambda p: (held[p], -prefill[p].queued_s))
            near = prefill[best].queued_s - prefill[shortest].queued_s <= self.balance_threshold_s
            if near and held[best] >= self.cache_threshold * request.isl:
                return best, least_full(decode)
        return shortest, least_full(decode)

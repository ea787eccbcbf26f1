"""The prefill node that holds most of the prompt's prefix, unless it is much busier than the idlest; the emptiest decode node.

    p = argmax cached(p) / isl    if that share is at least `share` and queued(p) - min queued <= balance_s
    p = argmin queued(p)          otherwise

Source: the rule of SGLang's cache-aware router (match threshold and balance threshold); its counts of requests are seconds here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abkt.policy.routing.least_loaded import backlog, emptiest
from abkt.policy.routing.ranking import candidates
from abkt.policy.view import DecodeLoad, PrefillLoad, RequestView


@dataclass(slots=True)
class PrefixAware:
    """share: of the prompt that has to be held to be worth following. balance_s: longer queues than the shortest are not followed.
    top_k: nodes that are looked at in a large cluster, least loaded and holding the longest prefix each."""

    share: float = 0.1
    balance_s: float = 2.0
    top_k: int = 4

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and self.balance_s >= 0 and self.top_k >= 1):
            raise ValueError("prefix_aware: share must be in (0, 1], balance_s not below 0, top_k at least 1")

    def decide(
        self,
        now_s: float,
        request: RequestView,
        prefill: Sequence[PrefillLoad],
        decode: Sequence[DecodeLoad],
        quote_s: Callable[[int, int], float],
    ) -> tuple[int, int]:
        looked = candidates(prefill, self.top_k, backlog, request.hash_ids)
        idlest = min(looked, key=lambda p: prefill[p].queued_s)
        if request.hash_ids:
            held = {p: prefill[p].cached_tokens(request.hash_ids) for p in looked}
            best = max(looked, key=lambda p: (held[p], -prefill[p].queued_s))
            near = prefill[best].queued_s - prefill[idlest].queued_s <= self.balance_s
            if near and held[best] >= self.share * request.isl:
                return best, emptiest(decode)
        return idlest, emptiest(decode)

"""The prefill node with the earliest first token, prefix cache included, and the decode node with the shortest iterations.

    TTFT(p) = queued(p) + T_prefill(isl, cached(p)),    p = argmin TTFT(p),    d = argmin TPOT(d), then the least memory in use

Source: Mooncake (FAST'25, arXiv 2407.00079), algorithm 1. Left out: its copy of a prefix between prefill nodes, and its rejection of
late requests, which is an admission policy here (abkt.policy.admission.reject_late).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abkt.policy.routing.base import DecodeLoad, PrefillLoad, RequestView
from abkt.policy.routing.least_loaded import backlog
from abkt.policy.routing.ranking import candidates
from abkt.ranges import bound


@dataclass(slots=True)
class MinTTFT:
    """top_k: number of nodes that are compared in a large cluster."""

    top_k: int = 4

    def __post_init__(self) -> None:
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
        p = min(looked, key=lambda p: first_token_s(prefill[p], request))
        d = min(candidates(decode, 1, _pace), key=lambda d: _pace(decode[d]))
        return p, d


def first_token_s(node: PrefillLoad, request: RequestView) -> float:
    """Expected seconds from now until the prefill node has the first token."""
    cached = node.cached_tokens(request.hash_ids) if request.hash_ids else 0
    return node.queued_s + node.prefill_s(request.isl, cached)


def _pace(node: DecodeLoad) -> tuple[float, float]:
    return node.tpot_s, node.kv_used

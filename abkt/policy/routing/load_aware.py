"""The pair of nodes on which the request's KV is usable first, if its decode node keeps its pace.

cost(p, d) = T_prefill(p) + T_transfer(p, d) + T_wait(d) + kappa_s max(0, TPOT(d) / SLO - 1)

T_prefill: what the node has queued and the prompt itself, less the prefix that it holds. T_transfer: what the pair's own bitrate policy
quotes, codec included. Ties go to the decode node with less memory promised, then to the nodes named first.

Looked at are the top_k prefill nodes by T_prefill, and the top_k decode nodes by their terms, so the choice is exact where top_k covers
all. In a large cluster (a Ranking) the decode side is pruned by its terms for a request of no length, then by memory promised.

Source: FlowKV (arXiv 2504.03775), load-aware scheduling; the terms as in DESIGN: time to usable KV, and a price on a slow decode node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abkt.policy.routing.least_loaded import backlog
from abkt.policy.routing.min_ttft import first_token_s
from abkt.policy.routing.ranking import candidates
from abkt.policy.view import DecodeLoad, PrefillLoad, RequestView


@dataclass(slots=True)
class LoadAwareRouting:
    """kappa_s: seconds that a TPOT of twice its SLO costs. top_k: nodes of each side that are looked at."""

    tpot_slo_s: float = 0.05
    kappa_s: float = 1.0
    top_k: int = 2

    def __post_init__(self) -> None:
        if not (self.tpot_slo_s > 0 and self.kappa_s >= 0 and self.top_k >= 1):
            raise ValueError("load_aware: tpot_slo_s must be above 0, kappa_s not below 0, top_k at least 1")

    def decide(
        self,
        now_s: float,
        request: RequestView,
        prefill: Sequence[PrefillLoad],
        decode: Sequence[DecodeLoad],
        quote_s: Callable[[int, int], float],
    ) -> tuple[int, int]:
        isl, top_k, decode_s = request.isl, self.top_k, self._decode_s
        near, idle = candidates(prefill, top_k, backlog, request.hash_ids), candidates(decode, top_k, self._pressure)
        sources = sorted([(first_token_s(prefill[p], request), p) for p in near])[:top_k]
        targets = sorted([(decode_s(decode[d], isl), decode[d].kv_used, d) for d in idle])[:top_k]
        pairs = sorted([(source[0] + target[0], target[1], source[1], target[2]) for source in sources for target in targets])
        best = None
        for known_s, used, p, d in pairs:
            if best is not None and known_s > best[0]:
                break  # no transfer is faster than none, so no later pair is better
            cost = (known_s + quote_s(p, d), used, p, d)
            if best is None or cost < best:
                best = cost
        assert best is not None
        return best[2], best[3]

    def _decode_s(self, node: DecodeLoad, isl: int) -> float:
        return node.wait_s(isl) + self.kappa_s * max(0.0, node.tpot_s / self.tpot_slo_s - 1)

    def _pressure(self, node: DecodeLoad) -> tuple[float, float]:
        return self._decode_s(node, 0), node.kv_used

"""The pair of nodes on which the request's KV is usable first, with a penalty for slow decode nodes.

cost(p, d) = T_prefill(p) + T_transfer(p, d) + T_wait(d) + tpot_penalty_s max(0, TPOT(d) / SLO - 1)

T_prefill: the node's queue, plus prefill of the prompt without its cached prefix. T_transfer: the quote of the pair's own bitrate policy,
including the codec. T_wait: the wait for decode memory. Ties go to the decode node with less memory in use, then to the first nodes.

Only the top_k prefill nodes by T_prefill and the top_k decode nodes by their own terms are compared, so the choice is optimal if top_k
covers all nodes. In a large cluster (a Ranking) the decode nodes are preselected by their terms for an empty prompt, then by memory in use.

Source: FlowKV (arXiv 2504.03775), load-aware scheduling; the cost as time to usable KV is this project's (docs/design.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abkt.policy.routing.base import DecodeLoad, PrefillLoad, RequestView
from abkt.policy.routing.least_loaded import backlog
from abkt.policy.routing.min_ttft import first_token_s
from abkt.policy.routing.ranking import candidates
from abkt.ranges import bound


@dataclass(slots=True)
class LoadAwareRouting:
    """The pair with the least expected time to usable KV.

    Parameters
    ----------
    tpot_slo_s : the TPOT of the SLO; slower decode nodes are penalised.
    tpot_penalty_s : penalty of a node whose TPOT is twice the SLO.
    top_k : number of nodes of each side that are compared.

    Raises
    ------
    ValueError : if a value is out of its range.

    Source: FlowKV (arXiv 2504.03775).
    """

    tpot_slo_s: float = 0.05
    tpot_penalty_s: float = 1.0
    top_k: int = 2

    def __post_init__(self) -> None:
        bound(self, "tpot_slo_s", above=0, infinite=True)
        bound(self, "tpot_penalty_s", least=0)
        bound(self, "top_k", least=1)

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
                break  # a transfer takes at least 0 s, so no later pair is better
            cost = (known_s + quote_s(p, d), used, p, d)
            if best is None or cost < best:
                best = cost
        assert best is not None
        return best[2], best[3]

    def _decode_s(self, node: DecodeLoad, isl: int) -> float:
        return node.wait_s(isl) + self.tpot_penalty_s * max(0.0, node.tpot_s / self.tpot_slo_s - 1)

    def _pressure(self, node: DecodeLoad) -> tuple[float, float]:
        return self._decode_s(node, 0), node.kv_used

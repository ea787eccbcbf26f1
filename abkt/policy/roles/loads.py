"""The loads of a cluster's two sides; a load of 1 just meets the SLO.

    prefill node  x_p = queued prefill seconds / SLO_TTFT
    decode node   x_d = max(KV due / 0.9, TPOT / SLO_TPOT)       requests that wait for prefill do not count
    side          L = sum w x / sum w over its nodes, with w the speed of each node; never below FLOOR, so that ratios are defined

Source: the signals of FlowKV's load-aware scheduler (arXiv 2504.03775).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from abkt.policy.roles.base import NodeLoad

KV_FULL = 0.9
FLOOR = 0.01


@dataclass(frozen=True, slots=True)
class Loads:
    """prefill_nodes, decode_nodes: indices of the nodes that have the role. prefill_load, decode_load: L of the two sides."""

    prefill_nodes: tuple[int, ...]
    decode_nodes: tuple[int, ...]
    prefill_load: float
    decode_load: float


def prefill_load(node: NodeLoad, ttft_slo_s: float) -> float:
    return node.queued_s / ttft_slo_s


def decode_load(node: NodeLoad, tpot_slo_s: float) -> float:
    return max(node.kv_due / KV_FULL, node.tpot_s / tpot_slo_s)


def loads(nodes: Sequence[NodeLoad], ttft_slo_s: float, tpot_slo_s: float) -> Loads:
    """The loads of both sides. Nodes with both roles count on both sides; nodes that change their role count on neither."""
    prefill = tuple(i for i, node in enumerate(nodes) if node.role in ("prefill", "both"))
    decode = tuple(i for i, node in enumerate(nodes) if node.role in ("decode", "both"))
    return Loads(
        prefill,
        decode,
        _mean((nodes[i] for i in prefill), lambda node: prefill_load(node, ttft_slo_s), lambda node: node.prefill_weight),
        _mean((nodes[i] for i in decode), lambda node: decode_load(node, tpot_slo_s), lambda node: node.decode_weight),
    )


def _mean(nodes: Iterable[NodeLoad], load: Callable[[NodeLoad], float], weight: Callable[[NodeLoad], float]) -> float:
    total = weights = 0.0
    for node in nodes:
        total += weight(node) * load(node)
        weights += weight(node)
    return max(FLOOR, total / weights) if weights else FLOOR

"""How loaded the two sides of a cluster are: 1 is as much as the SLO allows.

    prefill node  x_p = queued prefill seconds / SLO_TTFT
    decode node   x_d = max(KV due / 0.9, TPOT / SLO_TPOT)       those that wait for prefill are no load of decoding
    side          L = sum w x / sum w over its nodes, w what each can do; at least `floor`, so that a ratio can be had

Source: DESIGN, section 7; the signals are FlowKV's (arXiv 2504.03775).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from abkt.policy.roles.base import NodeLoad

KV_FULL = 0.9
FLOOR = 0.01


@dataclass(frozen=True, slots=True)
class Loads:
    """prefill, decode: the places of the nodes that have the role. prompts, tokens: the loads of the two sides."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    prompts: float
    tokens: float


def prompt_load(node: NodeLoad, ttft_slo_s: float) -> float:
    return node.queued_s / ttft_slo_s


def decode_load(node: NodeLoad, tpot_slo_s: float) -> float:
    return max(node.kv_due / KV_FULL, node.tpot_s / tpot_slo_s)


def loads(nodes: Sequence[NodeLoad], ttft_slo_s: float, tpot_slo_s: float) -> Loads:
    """Nodes that do both count on both sides; those that change, on neither."""
    prefill = tuple(i for i, node in enumerate(nodes) if node.role in ("prefill", "both"))
    decode = tuple(i for i, node in enumerate(nodes) if node.role in ("decode", "both"))
    return Loads(
        prefill,
        decode,
        _mean((nodes[i] for i in prefill), lambda node: prompt_load(node, ttft_slo_s), lambda node: node.prefill_weight),
        _mean((nodes[i] for i in decode), lambda node: decode_load(node, tpot_slo_s), lambda node: node.decode_weight),
    )


def _mean(nodes: Iterable[NodeLoad], load: Callable[[NodeLoad], float], weight: Callable[[NodeLoad], float]) -> float:
    total = weights = 0.0
    for node in nodes:
        total += weight(node) * load(node)
        weights += weight(node)
    return max(FLOOR, total / weights) if weights else FLOOR

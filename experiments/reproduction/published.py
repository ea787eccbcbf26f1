"""Published figures, as the papers print them. FlowKV: arXiv 2504.03775 (8B model, one prefill and one decode node)."""

from __future__ import annotations

TOKENS = (500, 1000, 4000, 8000, 10000)
LAYER_WISE_S = (0.0678, 0.1309, 0.5338, 1.1173, 1.4121)
FLOWKV_S = (0.0044, 0.0075, 0.0236, 0.0447, 0.0555)
LAYOUT_S = {"layer-wise": dict(zip(TOKENS, LAYER_WISE_S)), "block-contiguous": dict(zip(TOKENS, FLOWKV_S))}
TWO_NODES_S = {500: 0.0080, 8000: 0.0993}
"""FlowKV's own, prefill and decode on different nodes."""

LONGBENCH_SPEEDUP = {"gov_report": 0.489, "multi_news": 0.294, "qmsum": 0.152}
"""Share of the colocated time that is saved."""

TRANSFER_BEFORE_S, TRANSFER_AFTER_S, CLAIMED = 0.944, 0.053, 0.96
"""The abstract's mean transfer latency and its claim; the two numbers give 94.4 %."""

"""Transfers of KV between two simulated nodes: quotes, the sender of a pair, layer groups, and refinement during decoding.

For sim.nodes, which makes the pairs; TransportModel is part of a ClusterSpec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from sim.transfer.pair import NodePair
    from sim.transfer.transport import TransportModel

__all__ = ["NodePair", "TransportModel"]
__getattr__ = exporter(__name__, {"NodePair": "pair", "TransportModel": "transport"})

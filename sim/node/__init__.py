"""One node of the simulated cluster: its GPU time, its prompts, its decoding and its KV memory.

For sim.nodes, which makes the nodes, and for tests. A node knows nothing of links; it only knows whether a job has a pair to send over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from sim.node.memory import KvMemory
    from sim.node.node import Node
    from sim.node.prefix import PrefixCache

__all__ = ["KvMemory", "Node", "PrefixCache"]
__getattr__ = exporter(__name__, {"KvMemory": "memory", "Node": "node", "PrefixCache": "prefix"})

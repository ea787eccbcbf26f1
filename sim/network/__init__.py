"""Links that flows share max-min fairly, faults and background traffic on them, and the load of each node's NIC.

For sim.transfer and sim.nodes; its specifications are part of a ClusterSpec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from sim.network.background import Background, FlowSizes
    from sim.network.flows import Flow, Link, Network
    from sim.network.link_faults import LinkFault

__all__ = ["Background", "Flow", "FlowSizes", "Link", "LinkFault", "Network"]
__getattr__ = exporter(
    __name__,
    {
        "Background": "background",
        "Flow": "flows",
        "FlowSizes": "background",
        "Link": "flows",
        "LinkFault": "link_faults",
        "Network": "flows",
    },
)

"""A schedule of link faults: links that are down or slow for a while, the same in every run.

A fault leaves a share of the link's capacity at that time; the shares of overlapping faults multiply. Flows on a link that is down wait: no
byte passes, and bytes that have passed stay sent. A link is named by its node, or `fabric`.

Not modelled: packets under way when the link goes down; another path around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abkt.ranges import bound
from sim.network.flows import Link, Network
from sim.timers import Process, Wake


@dataclass(frozen=True, slots=True)
class LinkFault:
    """From start_s to end_s the link has the share `share` of its capacity; 0: it is down."""

    link: str
    start_s: float
    end_s: float
    share: float = 0.0

    def __post_init__(self) -> None:
        bound(self, "start_s", least=0)
        bound(self, "end_s", above=0, infinite=True)
        bound(self, "share", least=0, below=1)
        if not self.start_s < self.end_s:
            raise ValueError(f"the fault of link {self.link} lasts from {self.start_s} to {self.end_s} s; it must end after it starts")
        if math.isinf(self.end_s) and self.share == 0:
            raise ValueError(f"link {self.link} is down for ever; give the fault an end")


class LinkFaults:
    """The process that applies the faults. Raises ValueError for a fault of an unknown link."""

    def __init__(self, network: Network, links: Mapping[str, Link], faults: Sequence[LinkFault]) -> None:
        if unknown := sorted({fault.link for fault in faults} - links.keys()):
            raise ValueError(f"there is no link {unknown[0]}; there are {', '.join(sorted(links))}")
        self.network = network
        self.links = links
        self.faults = faults
        if faults:
            network.clock.process(self._run())

    def _run(self) -> Process:
        wake = Wake(self.network.clock)
        changes_s = sorted({time_s for fault in self.faults for time_s in (fault.start_s, fault.end_s)} - {math.inf})
        for now_s in changes_s:
            yield wake.at(now_s)
            for name in sorted({fault.link for fault in self.faults if now_s in (fault.start_s, fault.end_s)}):
                share = math.prod(f.share for f in self.faults if f.link == name and f.start_s <= now_s < f.end_s)
                self.network.set_share(self.links[name], share)

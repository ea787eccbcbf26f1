"""Background traffic on the cluster's links: flows that arrive at random, share the links max-min fairly, and end.

Flows arrive on each path as a Poisson process, at a rate that fills the share `load` of the path's slowest link on average. Their sizes are
drawn from a data centre's distribution. With a burst of n, n flows begin at once (incast). The traffic has its own seed, so it does not
depend on the requests, except that it ends with the run.

Source of distributions: the flow-size files that congestion-control studies share (web search: DCTCP, SIGCOMM 2010; storage, RPC and
Hadoop likewise). Each line has a size in bytes and a cumulative percentage; between lines the distribution is linear.
Not modelled: flows that slow each other down by losses; arrivals that depend on the time of day.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

from abkt.ranges import bound, check_seed
from sim.network.flows import Flow, Link, Network
from sim.timers import Process, Wake

CHECK_EVERY = 1000  # arrivals between two checks of whether only background traffic is left


@dataclass(frozen=True, slots=True)
class FlowSizes:
    """A cumulative distribution: shares[i] of all flows have at most bytes[i]."""

    bytes: tuple[float, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a <= b for values in (self.bytes, self.shares) for a, b in pairwise(values))
        if len(self.bytes) != len(self.shares) or len(self.bytes) < 2 or not rising or self.bytes[0] < 0 or self.bytes[-1] <= 0:
            raise ValueError("flow sizes need at least two points whose bytes and shares do not fall")
        if self.shares[0] != 0 or self.shares[-1] != 1:
            raise ValueError(f"shares of flow sizes go from {self.shares[0]:g} to {self.shares[-1]:g}; they must go from 0 to 1")

    @property
    def mean_bytes(self) -> float:
        return sum((p1 - p0) * (b0 + b1) / 2 for (b0, p0), (b1, p1) in pairwise(zip(self.bytes, self.shares)))

    def draw(self, share: float) -> float:
        """The size in bytes below which the share `share` of all flows lies."""
        after = max(1, bisect_left(self.shares, share))
        low, high = self.shares[after - 1], self.shares[after]
        inside = (share - low) / (high - low) if high > low else 1.0
        return self.bytes[after - 1] + inside * (self.bytes[after] - self.bytes[after - 1])


def read_flow_sizes(path: Path) -> FlowSizes:
    """Read a file of flow sizes. Raises ValueError, one line, that names the file and the bad line."""
    sizes, shares = [], []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"flow sizes {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        try:
            size, percent = map(float, fields)
        except ValueError:
            raise ValueError(f"flow sizes {path}, line {number}: {line!r} is not a size in bytes and a cumulative percentage") from None
        sizes.append(size)
        shares.append(percent / 100)
    try:
        return FlowSizes(tuple(sizes), tuple(shares))
    except ValueError as error:
        raise ValueError(f"flow sizes {path}: {error}") from None


@dataclass(frozen=True, slots=True)
class Background:
    """Settings of background traffic.

    paths: sequences of link names, each with its own arrivals. load: share of the capacity that each path's slowest link has at the start
    of the run. burst: number of flows that begin at once.
    """

    sizes: FlowSizes
    load: float
    paths: tuple[tuple[str, ...], ...]
    burst: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        bound(self, "load", above=0, most=100)
        bound(self, "burst", least=1, most=100_000)
        check_seed(self)
        if not all(self.paths):
            raise ValueError("background traffic needs links in every path")


class Traffic:
    """Background flows on a network while running() holds. Raises ValueError for a path over an unknown link, or one without a limit."""

    def __init__(self, network: Network, links: Mapping[str, Link], background: Background, running: Callable[[], bool]) -> None:
        if unknown := sorted({name for path in background.paths for name in path} - links.keys()):
            raise ValueError(f"background traffic: there is no link {unknown[0]}; there are {', '.join(sorted(links))}")
        self.network, self.background, self.running = network, background, running
        self.flows = self.bytes = 0.0  # number and bytes of the flows that have ended
        for index, names in enumerate(background.paths):
            path = tuple(links[name] for name in names)
            capacity = min(link.bytes_per_s for link in path)
            if math.isinf(capacity):
                raise ValueError(f"background traffic: no link of {', '.join(names)} has a limit, so load is a share of nothing")
            rate = background.load * capacity / background.sizes.mean_bytes / background.burst
            network.clock.process(self._arrivals(path, rate, Random(f"{background.seed} {index}")))

    def _arrivals(self, path: tuple[Link, ...], rate_per_s: float, random: Random) -> Process:
        clock, draw = self.network.clock, self.background.sizes.draw
        wake = Wake(clock, background=True)
        arrived = 0
        while True:
            yield wake.after(random.expovariate(rate_per_s))
            arrived += 1
            if not self.running() or (arrived % CHECK_EVERY == 0 and not clock.has_work()):
                return
            for _ in range(self.background.burst):
                clock.process(self._flow(path, draw(random.random())))

    def _flow(self, path: tuple[Link, ...], size_bytes: float) -> Process:
        flow = Flow(self.network.clock, path, size_bytes, lambda passed, seconds: size_bytes, end=Wake(self.network.clock, background=True))
        self.network.join(flow)
        yield flow.end
        self.network.leave(flow)
        self.flows += 1
        self.bytes += size_bytes

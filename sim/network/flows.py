"""Flows that share links max-min fairly: sender NIC, fabric, receiver NIC, each with a capacity that may change with time.

Rates are max-min fair if no flow can get a higher rate without lowering the rate of a flow that is no faster. Equivalently, every flow has
a bottleneck: a full link on which no flow is faster. Progressive filling finds these rates: raise all rates together, freeze those on the
link that fills first, repeat with the others. Flows of a higher level are less urgent: each level shares the capacity that the lower levels
leave, which may be nothing. Rates are solved again whenever a flow joins or leaves or a capacity changes, but only for flows that are
connected to the change by shared links; the others keep their rates.

Source: Bertsekas and Gallager, Data Networks, section 6.5.2.
Not modelled: packets, TCP's slow start and losses, propagation delay (a transfer adds it), queues in switches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from abkt.capacity import Capacity
from sim.timers import Process, Timers, Wake

FULL = 1e-12  # a link with at most this share of its capacity left counts as full; larger than rounding errors


def fair_rates(paths: Sequence[Sequence[Hashable]], capacity: Mapping[Any, float], levels: Sequence[int] | None = None) -> list[float]:
    """Max-min fair rates of flows over `paths` of links; flows of lower `levels` go first. An unlimited flow has the rate inf."""
    if levels is None or len(set(levels)) < 2:
        return _fill(paths, {link: capacity[link] for path in paths for link in path})
    rates = [0.0] * len(paths)
    room = {link: capacity[link] for path in paths for link in path}
    for level in sorted(set(levels)):
        members = [flow for flow, of in enumerate(levels) if of == level]
        for flow, rate in zip(members, _fill([paths[flow] for flow in members], room), strict=True):
            rates[flow] = rate
        room = {link: 0.0 if left <= FULL * capacity[link] < math.inf else left for link, left in room.items()}
    return rates


def _fill(paths: Sequence[Sequence[Hashable]], room: dict[Hashable, float]) -> list[float]:
    """Progressive filling. Lowers `room`, the bytes/s left on each link, by the rates of the flows."""
    rates = [math.inf] * len(paths)
    flows: dict[Hashable, set[int]] = {}
    for flow, path in enumerate(paths):
        for link in path:
            flows.setdefault(link, set()).add(flow)
    while flows:
        bottleneck = min(flows, key=lambda link: room[link] / len(flows[link]))
        share = room[bottleneck] / len(flows[bottleneck])
        if math.isinf(share):
            break
        for flow in flows.pop(bottleneck):
            rates[flow] = share
            for link in paths[flow]:
                if others := flows.get(link):
                    others.discard(flow)
                    room[link] = max(0.0, room[link] - share)
                    if not others:
                        del flows[link]
        room[bottleneck] = 0.0
    return rates


class Link:
    """A link whose capacity is bytes_per_s until change_s.

    flows: the flows on it, in order of joining. share: share of the capacity that faults leave.
    """

    __slots__ = ("bytes_per_s", "capacity", "change_s", "flows", "name", "share", "wake")

    def __init__(self, clock: Timers, name: str, capacity: Capacity) -> None:
        self.name = name
        self.capacity = capacity
        self.bytes_per_s, self.change_s = capacity.at(clock.now)
        self.share = 1.0
        self.flows: dict[Flow, None] = {}
        self.wake = Wake(clock)

    def refresh(self, now_s: float) -> None:
        if now_s >= self.change_s:
            self.bytes_per_s, self.change_s = self.capacity.at(now_s)
            if self.share != 1.0:
                self.bytes_per_s *= self.share

    def set_share(self, now_s: float, share: float) -> None:
        self.share = share
        bytes_per_s, self.change_s = self.capacity.at(now_s)
        self.bytes_per_s = bytes_per_s * share if share > 0 else 0.0


class Flow:
    """Bytes that pass a path of links at a rate that changes with the other flows.

    Parameters
    ----------
    clock : simulated time.
    path : the links that it passes.
    target_bytes : bytes that are to pass; this target may move while the flow runs.
    on_rate : called with (bytes, seconds) whenever the flow gets another rate, the first included: the bytes that passed at the last rate,
        and for how long. Returns target_bytes.
    limit_bytes_per_s : limit of this flow's rate, in addition to the links.
    level : flows of a lower level go first.
    end : timer that fires when the target has passed; None: the flow makes one.
    stall_s : `end` also fires after this many seconds without a byte.
    """

    __slots__ = ("end", "level", "limit_bytes_per_s", "on_rate", "path", "rate", "sent_bytes", "since_s", "stall_s", "target_bytes")

    def __init__(
        self,
        clock: Timers,
        path: tuple[Link, ...],
        target_bytes: float,
        on_rate: Callable[[float, float], float],
        limit_bytes_per_s: float = math.inf,
        level: int = 0,
        end: Wake | None = None,
        stall_s: float = math.inf,
    ) -> None:
        self.path = path
        self.target_bytes = target_bytes
        self.on_rate = on_rate
        self.limit_bytes_per_s = limit_bytes_per_s
        self.level = level
        self.stall_s = stall_s
        self.end = end or Wake(clock)
        self.rate = math.nan  # NaN until the flow joins
        self.sent_bytes = 0.0
        self.since_s = clock.now

    def settle(self, now_s: float) -> tuple[float, float]:
        """Count the bytes that have passed since the last change; returns (bytes, seconds)."""
        seconds, left = now_s - self.since_s, self.target_bytes - self.sent_bytes
        passed = min(left, self.rate * seconds) if seconds > 0 else 0.0
        self.sent_bytes += passed
        self.since_s = now_s
        return passed, seconds

    def finish(self, now_s: float) -> tuple[float, float]:
        """`settle` after `end` has fired: exactly the target has passed, regardless of rounding."""
        passed, seconds = self.target_bytes - self.sent_bytes, now_s - self.since_s
        self.sent_bytes, self.since_s = self.target_bytes, now_s
        return passed, seconds

    def aim(self, target_bytes: float) -> None:
        """Move `end` to the time at which target_bytes will have passed. Call `settle` first."""
        self.target_bytes = max(target_bytes, self.sent_bytes)
        left = self.target_bytes - self.sent_bytes
        if left <= 0:
            self.end.at(self.since_s)
        elif self.rate > 0:
            self.end.at(self.since_s + left / self.rate)
        elif self.stall_s < math.inf:
            self.end.at(self.since_s + self.stall_s)
        else:
            self.end.cancel()  # no end until the flow has a rate again


class Network:
    """The links of a cluster and the flows on them.

    `link` makes a link, `join` and `leave` add and remove a flow; each change solves the max-min fair rates of the flows that it concerns.

    Parameters
    ----------
    clock : simulated time.
    """

    def __init__(self, clock: Timers) -> None:
        self.clock = clock

    def link(self, name: str, capacity: Capacity) -> Link:
        link = Link(self.clock, name, capacity)
        if link.change_s < math.inf:
            self.clock.process(self._follow(link))
        return link

    def join(self, flow: Flow) -> None:
        now_s = flow.since_s = self.clock.now
        alone = True
        for link in flow.path:
            if link.flows:
                alone = False
            link.flows[flow] = None
            if link.change_s < math.inf:
                link.refresh(now_s)
                if len(link.flows) == 1:
                    link.wake.at(link.change_s)
        self._solve(flow.path, flow if alone else None)

    def leave(self, flow: Flow) -> None:
        """Remove a flow that has ended or pauses. It may join again and then continues where it stopped."""
        flow.end.cancel()
        flow.rate = math.nan
        shared = False
        for link in flow.path:
            del link.flows[flow]
            if link.flows:
                shared = True
            else:
                link.wake.cancel()
        if shared:
            self._solve(flow.path)

    def set_share(self, link: Link, share: float) -> None:
        """Set the share of the link's capacity that faults leave: 0 while it is down, 1 when the fault is over."""
        link.set_share(self.clock.now, share)
        self._solve((link,))

    def _follow(self, link: Link) -> Process:
        """Solve the rates again at each change of the link's capacity, while flows use it."""
        while True:
            yield link.wake
            link.refresh(self.clock.now)
            self._solve((link,))
            link.wake.at(link.change_s)

    def _solve(self, changed: Iterable[Link], alone: Flow | None = None) -> None:
        """Solve the rates of all flows connected to the changed links. alone: the only flow on these links, if that is known."""
        flows = (alone,) if alone else _connected(changed)
        if not flows:
            return
        if len(flows) == 1:
            (flow,) = flows
            rates = [min([flow.limit_bytes_per_s, *[link.bytes_per_s for link in flow.path]])]
        else:
            capacity: dict[Hashable, float] = {link: link.bytes_per_s for flow in flows for link in flow.path}
            capacity.update({flow: flow.limit_bytes_per_s for flow in flows})  # a flow's limit acts like a private link
            rates = fair_rates([(*flow.path, flow) for flow in flows], capacity, [flow.level for flow in flows])
        now_s = self.clock.now
        for flow, rate in zip(flows, rates):
            if rate != flow.rate:
                passed, seconds = flow.settle(now_s)
                flow.rate = rate
                flow.aim(flow.on_rate(passed, seconds))


def _connected(changed: Iterable[Link]) -> dict[Flow, None]:
    """The flows on these links, the flows that share a link with those, and so on."""
    flows: dict[Flow, None] = {}
    seen, reached = set(changed), list(changed)
    while reached:
        for flow in reached.pop().flows:
            if flow not in flows:
                flows[flow] = None
                for link in flow.path:
                    if link not in seen:
                        seen.add(link)
                        reached.append(link)
    return flows

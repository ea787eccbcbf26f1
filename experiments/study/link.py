"""The link of a twin by the machine: raw KV misses the SLO for part of the requests, and the finest compressed rate keeps it.

On a faster link every policy keeps the SLO, on a slower one none does; in both cases the study could not tell the policies apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from experiments.lib.network import DriveConfig, NetworkConfig
from experiments.study.load import largest, two_digits

RAW = {"_target_": "abkt.policy.bitrate.fixed.Raw"}
FINEST = {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": 8}  # the finest compressed rate
KEPT = 0.95  # share of the requests within the SLO from which on a policy keeps it
SLACK = 0.02  # less than a link without limits gives
MARGIN = 1.15  # over the capacity that the finest compressed rate needs
PERIODS = 2  # of the link's schedule in one run
WIDEST_GBPS = 1e5  # as good as no limit
RANGE = 200.0  # links from the mean rate of the raw bytes over this to the mean rate times this are tried
Bitrate = Mapping[str, object]
Share = Callable[[Bitrate, NetworkConfig | DriveConfig], float]


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """raw, finest: share of requests within the SLO that the simulator predicts for raw KV and for the finest compressed rate. note: what
    is wrong with the link for this purpose; empty if nothing."""

    network: NetworkConfig | DriveConfig
    raw: float
    finest: float
    note: str = ""


def plan_link(network: NetworkConfig, raw_bytes_per_s: float, span_s: float, share: Share) -> LinkPlan:
    """Choose the capacity of a link, and the times of its schedule.

    The capacity is a little above the narrowest on which the finest compressed rate keeps the SLO, and below the narrowest on which raw KV
    does.

    Parameters
    ----------
    network : shape of the link; its rate and its times are replaced.
    raw_bytes_per_s : mean rate of raw KV that the requests make.
    span_s : time in which the requests of a run arrive.
    share : predicted share of requests within the SLO, for a policy on a link.
    """
    if math.isfinite(network.period_s):
        period_s = two_digits(span_s / PERIODS)
        starts_s = tuple(round(start / network.period_s * period_s, 6) for start in network.starts_s)
        network = replace(network, starts_s=starts_s, period_s=period_s)
    mean_gbps = raw_bytes_per_s * 8 / 1e9
    kept = _kept(network, share)

    def narrowest(policy: Bitrate) -> float:
        """The narrowest link that keeps the SLO; found as the largest slowness that still does."""
        most = largest(1 / RANGE, RANGE, lambda slowness: share(policy, replace(network, gbps=mean_gbps / slowness)) < kept)
        return mean_gbps / most

    finest, raw = narrowest(FINEST), narrowest(RAW)
    gbps = two_digits(min(finest * MARGIN, math.sqrt(finest * raw)) if raw > finest else finest)
    return check_link(replace(network, gbps=gbps), share)


def check_link(network: NetworkConfig | DriveConfig, share: Share) -> LinkPlan:
    """What the simulator predicts for a given link, and whether a study over it can tell the policies apart."""
    raw, finest, kept = share(RAW, network), share(FINEST, network), _kept(network, share)
    note = ""
    if raw >= kept:
        note = "raw KV keeps the SLO on this link, so compression can gain little here"
    elif finest < kept:
        note = "even 8 bits a value miss the SLO for part of the requests on this link"
    return LinkPlan(network, raw, finest, note)


def _kept(network: NetworkConfig | DriveConfig, share: Share) -> float:
    """The share of requests from which on a policy keeps the SLO: less than KEPT where queues alone cost more than the rest."""
    return min(KEPT, share(FINEST, replace(network, gbps=WIDEST_GBPS)) - SLACK)

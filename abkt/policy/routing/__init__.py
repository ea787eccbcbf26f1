"""Routing policies, one file each. A policy chooses a prefill node and a decode node for each request. The simulator and the frontend call
them; configurations name them by class (conf/routing).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.policy.routing.base import DecodeLoad, PrefillLoad, RequestView, RoutingPolicy
    from abkt.policy.routing.least_loaded import LeastLoaded
    from abkt.policy.routing.load_aware import LoadAwareRouting
    from abkt.policy.routing.min_ttft import MinTTFT
    from abkt.policy.routing.power_of_two import PowerOfTwo
    from abkt.policy.routing.prefix_aware import PrefixAware
    from abkt.policy.routing.random import RandomRouting
    from abkt.policy.routing.round_robin import RoundRobin

__all__ = [
    "DecodeLoad",
    "LeastLoaded",
    "LoadAwareRouting",
    "MinTTFT",
    "PowerOfTwo",
    "PrefillLoad",
    "PrefixAware",
    "RandomRouting",
    "RequestView",
    "RoundRobin",
    "RoutingPolicy",
]
__getattr__ = exporter(
    __name__,
    {
        "DecodeLoad": "base",
        "LeastLoaded": "least_loaded",
        "LoadAwareRouting": "load_aware",
        "MinTTFT": "min_ttft",
        "PowerOfTwo": "power_of_two",
        "PrefillLoad": "base",
        "PrefixAware": "prefix_aware",
        "RandomRouting": "random",
        "RequestView": "base",
        "RoundRobin": "round_robin",
        "RoutingPolicy": "base",
    },
)

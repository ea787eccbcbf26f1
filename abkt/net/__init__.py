"""Emulated networks for real processes: Linux network namespaces with shaped links, delay, loss and a schedule of rates.

Used by `abkt.serve` and by experiments that run real workers over a given network. It needs the rights to make namespaces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.net.bucket import TokenBucket
    from abkt.net.command import NetworkError
    from abkt.net.layout import Layout
    from abkt.net.namespaces import Namespaces
    from abkt.net.relay import Relay
    from abkt.net.schedule import ScheduleFollower

__all__ = ["Layout", "Namespaces", "NetworkError", "Relay", "ScheduleFollower", "TokenBucket"]
__getattr__ = exporter(
    __name__,
    {
        "Layout": "layout",
        "Namespaces": "namespaces",
        "NetworkError": "command",
        "Relay": "relay",
        "ScheduleFollower": "schedule",
        "TokenBucket": "bucket",
    },
)

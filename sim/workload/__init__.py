"""The requests of a run: synthetic or read from published traces, and scaled to a cluster's size.

They know nothing of the cluster; the simulator, the real runs and the experiments all read them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from sim.workload.requests import Request
    from sim.workload.scaling import Scaling, scale
    from sim.workload.servegen import read_servegen
    from sim.workload.traces import read_trace

__all__ = ["Request", "Scaling", "read_servegen", "read_trace", "scale"]
__getattr__ = exporter(
    __name__,
    {
        "Request": "requests",
        "Scaling": "scaling",
        "read_servegen": "servegen",
        "read_trace": "traces",
        "scale": "scaling",
    },
)

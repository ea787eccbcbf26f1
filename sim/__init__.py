"""A simulated prefill-decode cluster on SimPy. A measured profile gives the time of each piece of work.

For the experiments and for notebooks; it needs neither torch nor pandas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from sim.cluster import Simulation, SimulationResult
    from sim.specs import ClusterSpec, EngineSpec, NodeSpec
    from sim.workload.requests import Request

__all__ = ["ClusterSpec", "EngineSpec", "NodeSpec", "Request", "Simulation", "SimulationResult"]
__getattr__ = exporter(
    __name__,
    {
        "ClusterSpec": "specs",
        "EngineSpec": "specs",
        "NodeSpec": "specs",
        "Request": "workload.requests",
        "Simulation": "cluster",
        "SimulationResult": "cluster",
    },
)

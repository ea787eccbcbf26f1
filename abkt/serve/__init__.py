"""Serving on this machine: a frontend, and prefill and decode worker processes that move real KV. The command line and studies of a real
cluster use it. `frontend` and `worker` are the two sides; `commands` and `reports` define their messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.serve.api.endpoint import Endpoint
    from abkt.serve.cluster import ClusterRun, LocalCluster, PlannedRoleChange
    from abkt.serve.errors import ClusterError, WorkerDied
    from abkt.serve.frontend.prompt import Prompt
    from abkt.serve.service import Service
    from abkt.serve.spec import LocalClusterSpec

__all__ = [
    "ClusterError",
    "ClusterRun",
    "Endpoint",
    "LocalCluster",
    "LocalClusterSpec",
    "PlannedRoleChange",
    "Prompt",
    "Service",
    "WorkerDied",
]
__getattr__ = exporter(
    __name__,
    {
        "ClusterError": "errors",
        "ClusterRun": "cluster",
        "Endpoint": "api.endpoint",
        "LocalCluster": "cluster",
        "LocalClusterSpec": "spec",
        "PlannedRoleChange": "cluster",
        "Prompt": "frontend.prompt",
        "Service": "service",
        "WorkerDied": "errors",
    },
)

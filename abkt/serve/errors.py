"""How a cluster breaks. The text of an error is one line that a user reads."""

from __future__ import annotations


class ClusterError(RuntimeError):
    """A cluster that broke while it was starting or running."""


class WorkerDied(ClusterError):
    """A worker process has ended. Names the worker, how it ended and the last lines of its log."""

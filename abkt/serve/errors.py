"""The errors of a cluster. The text of each is one line for the user."""

from __future__ import annotations


class ClusterError(RuntimeError):
    """A cluster that broke while it was starting or running."""


class WorkerDied(ClusterError):
    """A worker process has ended. Names the worker, how it ended and the last lines of its log."""

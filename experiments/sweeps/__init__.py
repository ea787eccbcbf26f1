"""Grids of simulations: axes and points, the pools that run them, and the journal that makes a sweep resumable.

Used by `abkt sweep`, `abkt reproduce`, and the searches of `abkt capacity` and `abkt plan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from experiments.sweeps.grid import Axis, GridPoint, axes, points
    from experiments.sweeps.journal import Journal
    from experiments.sweeps.run import SweepConfig, sweep

__all__ = ["Axis", "GridPoint", "Journal", "SweepConfig", "axes", "points", "sweep"]
__getattr__ = exporter(
    __name__,
    {"Axis": "grid", "GridPoint": "grid", "Journal": "journal", "SweepConfig": "run", "axes": "grid", "points": "grid", "sweep": "run"},
)

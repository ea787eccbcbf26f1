"""Goodput against load by role policy, simulated (8 instances, half of them prefill at first; long prompts, short answers).

Bands span the seeds. Above: requests per second within the SLO; the dotted line is the load. Below: p99 TTFT. Not validated on hardware."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from experiments.figures.load import against_load
from experiments.figures.stored import Stored, completed

INPUTS = ("roles",)
ROLES = ("static", "colocated", "conditional", "load_aware", "arrow")


def draw(tables: Mapping[str, Stored]) -> Figure:
    return against_load(completed(tables["roles"]), "roles", ROLES)

"""Goodput against load by routing policy, simulated (4 prefill and 4 decode instances, prompts of very different lengths).

Bands span the seeds. Above: requests per second within the SLO; the dotted line is the load. Below: p99 TTFT. Not validated on hardware."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from experiments.figures.load import against_load
from experiments.figures.stored import Stored, completed

INPUTS = ("routing",)
ROUTINGS = ("random", "round_robin", "least_loaded", "load_aware", "min_ttft", "power_of_two", "prefix_aware")


def draw(tables: Mapping[str, Stored]) -> Figure:
    return against_load(completed(tables["routing"]), "routing", ROUTINGS)

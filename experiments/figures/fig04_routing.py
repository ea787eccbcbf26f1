"""Goodput against load by routing policy, in the model (4 prefill and 4 decode instances, prompts of very different lengths).

Bands span the seeds. Above: requests per second within the SLO; the dotted line is all of them. Below: the TTFT that one request in a
hundred exceeds. Not validated on hardware."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from experiments.figures.stored import Stored, completed
from experiments.figures.style import looks

INPUTS = ("routing",)
ROUTINGS = ("random", "round_robin", "least_loaded", "load_aware", "min_ttft", "power_of_two", "prefix_aware")


def draw(tables: Mapping[str, Stored]) -> Figure:
    rows = completed(tables["routing"])
    load, routings = "workload.rate_per_s", [name for name in ROUTINGS if name in set(rows.routing)]
    look = looks(routings, ROUTINGS)
    figure = Figure(figsize=(6.0, 5.0))
    above, below = figure.subplots(2, 1, sharex=True)
    for routing in routings:
        for axes, figure_of in ((above, "goodput_per_s"), (below, "ttft_s.p99")):
            seeds = rows[rows.routing == routing].groupby(load)[figure_of]
            style = {**look[routing], "markersize": 4, "markerfacecolor": "none", "linewidth": 1.4}
            axes.plot(seeds.mean().index, seeds.mean(), label=routing if axes is above else None, **style)
            axes.fill_between(seeds.min().index, seeds.min(), seeds.max(), color=look[routing]["color"], alpha=0.1, linewidth=0)
    rates = sorted(rows[load].unique())
    above.plot(rates, rates, color="#777777", linewidth=0.9, linestyle=":")
    above.set_ylim(0, 1.25 * rows.goodput_per_s.max())
    above.set_ylabel("goodput (requests/s)")
    below.set_yscale("log")
    below.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    below.set_yticks([], minor=True)
    below.set_ylabel("p99 TTFT (s)")
    below.set_xlabel("load (requests/s)")
    figure.legend(loc="outside upper left", ncols=3)
    return figure

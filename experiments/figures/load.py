"""Goodput and p99 TTFT against load, one line for each choice of a group; shared by fig04 and fig10."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from experiments.figures.style import looks

LOAD = "workload.rate_per_s"
TICKS_S = (0.2, 0.5, 1, 2, 5, 10, 20, 50)


def against_load(rows: pd.DataFrame, group: str, known: Sequence[str]) -> Figure:
    """rows: points of a sweep with an axis LOAD, an axis `group`, and seeds. The bands span the seeds."""
    names = [name for name in known if name in set(rows[group])]
    look = looks(names, known)
    figure = Figure(figsize=(6.0, 5.0))
    above, below = figure.subplots(2, 1, sharex=True)
    for name in names:
        for axes, column in ((above, "goodput_per_s"), (below, "ttft_s.p99")):
            seeds = rows[rows[group] == name].groupby(LOAD)[column]
            style = {**look[name], "markersize": 4, "markerfacecolor": "none", "linewidth": 1.4}
            axes.plot(seeds.mean().index, seeds.mean(), label=name if axes is above else None, **style)
            axes.fill_between(seeds.min().index, seeds.min(), seeds.max(), color=look[name]["color"], alpha=0.1, linewidth=0)
    rates = sorted(rows[LOAD].unique())
    above.plot(rates, rates, color="#777777", linewidth=0.9, linestyle=":")
    above.set_ylim(0, 1.25 * rows.goodput_per_s.max())
    above.set_ylabel("goodput (requests/s)")
    low, high = rows["ttft_s.p99"].min(), rows["ttft_s.p99"].max()
    ticks = [tick for tick in TICKS_S if 0.8 * low <= tick <= 1.25 * high]
    below.set_yscale("log")
    below.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    below.set_yticks([], minor=True)
    below.set_ylabel("p99 TTFT (s)")
    below.set_xlabel("load (requests/s)")
    figure.legend(loc="outside upper left", ncols=3)
    return figure

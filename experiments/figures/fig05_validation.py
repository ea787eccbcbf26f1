"""Predicted against measured: each mark is one policy under one condition that the simulator was not calibrated on.

Left: means; right: 99th percentiles. The grey band is 10 % to either side of equal; bars span the repeats on the machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.stored import Stored
from experiments.figures.style import BITRATES, looks

INPUTS = ("validation",)
TICKS = tuple(digit * 10.0**power for power in range(-4, 4) for digit in (1, 2, 5))
MEASURES = {"ttft": ("TTFT", "o"), "e2e": ("E2E", "s")}


def draw(tables: Mapping[str, Stored]) -> Figure:
    rows = tables["validation"].rows
    policies = [name for name in BITRATES if name in set(rows.policy)]
    policies += [name for name in sorted(set(rows.policy)) if name not in policies]
    colour = {name: look["color"] for name, look in looks(policies).items()}
    figure = Figure(figsize=(6.4, 3.7))
    for axes, quantile in zip(figure.subplots(1, 2), ("mean", "p99"), strict=True):
        part = rows[(rows["quantile"] == quantile) & rows.stage.isin(MEASURES)]
        low, high = 0.8 * min(part.measured_s.min(), part.predicted_s.min()), 1.25 * max(part.measured_s.max(), part.predicted_s.max())
        diagonal = np.array([low, high])
        axes.fill_between(diagonal, diagonal * 0.9, diagonal * 1.1, color="#EEEEEE", zorder=0)
        axes.plot(diagonal, diagonal, color="#777777", linewidth=1, zorder=1)
        for stage, (label, marker) in MEASURES.items():
            for policy in policies:
                some = part[(part.stage == stage) & (part.policy == policy)]
                spread = [some.measured_s - some.measured_low_s, some.measured_high_s - some.measured_s]
                look = {"fmt": marker, "color": colour[policy], "markerfacecolor": "none", "markersize": 5, "elinewidth": 0.8}
                named = f"{policy}" if stage == "ttft" and quantile == "mean" else None
                axes.errorbar(some.measured_s, some.predicted_s, xerr=np.abs(spread), label=named, **look)
            if quantile == "mean":
                axes.plot([], [], marker, color="#777777", markerfacecolor="none", label=label)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal", title=quantile)
        ticks = [tick for tick in TICKS if low <= tick <= high]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_ticks([], minor=True)
        axes.set_xlabel("measured (s)")
        if quantile == "mean":
            axes.set_ylabel("predicted (s)")
    figure.legend(loc="outside upper left", ncols=6, columnspacing=1.0, handletextpad=0.2)
    return figure

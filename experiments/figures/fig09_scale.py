"""Speed of the simulator: requests per CPU-second against the number of instances, at the same load per instance, on one core."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from experiments.figures.stored import Stored, completed
from experiments.figures.style import BITRATES, looks

INPUTS = ("scale",)


def draw(tables: Mapping[str, Stored]) -> Figure:
    rows = completed(tables["scale"])
    rows = rows.assign(rate=rows["requests.completed"] / rows.cpu_s, instances=2 * rows["cluster.prefill"])
    policies = [name for name in BITRATES if name in set(rows.bitrate)]
    look = looks(policies)
    figure = Figure()
    axes = figure.subplots()
    for policy in policies:
        line = rows[rows.bitrate == policy].sort_values("instances")
        axes.plot(line.instances, line.rate, label=policy, **look[policy])
    axes.set(xscale="log", xlabel="instances (half of them prefill)", ylabel="requests per CPU-second")
    ticks = sorted(rows.instances.unique())
    axes.set_xticks(ticks, [f"{int(tick)}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 1.1 * rows.rate.max())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside upper left", ncols=2)
    return figure

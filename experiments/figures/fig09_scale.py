"""The simulator's own scale: requests per second of its time against the number of instances, at the same load per instance, one core."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from experiments.figures.stored import Stored, completed
from experiments.figures.style import BITRATES, looks

INPUTS = ("scale",)


def draw(tables: Mapping[str, Stored]) -> Figure:
    rows = completed(tables["scale"])
    rows = rows.assign(rate=rows["requests.completed"] / rows.wall_s, instances=2 * rows["cluster.prefill"])
    policies = [name for name in BITRATES if name in set(rows.bitrate)]
    look = looks(policies)
    figure = Figure()
    axes = figure.subplots()
    for policy in policies:
        line = rows[rows.bitrate == policy].sort_values("instances")
        axes.plot(line.instances, line.rate, label=policy, **look[policy])
    axes.set(xscale="log", yscale="log", xlabel="instances (half of them prefill)", ylabel="simulated requests per second")
    ticks = sorted(rows.instances.unique())
    axes.set_xticks(ticks, [f"{int(tick)}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0.7 * rows.rate.min(), 1.4 * rows.rate.max())
    rates = [r for r in (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000) if 0.7 * rows.rate.min() <= r <= 1.4 * rows.rate.max()]
    axes.set_yticks(rates, [f"{rate:,}" for rate in rates])
    axes.set_yticks([], minor=True)
    figure.legend(loc="outside upper left", ncols=2)
    return figure

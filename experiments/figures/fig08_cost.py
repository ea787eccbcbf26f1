"""Cost against quality in three places: US dollars per 1,000 requests and mean distortion of the KV, by bitrate policy, simulated.

Prices of GPU hours and egress are assumptions. Lossless policies are at the left edge; hollow marks missed the TTFT limit on average. Where
bytes are free, nothing can be saved; elsewhere each policy saves at the price of distortion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.figures.stored import Stored, completed
from experiments.figures.style import BITRATES, looks

INPUTS = ("cost",)
PLACES = {"25g": "distributed service", "wan_cloud": "network that costs", "edge_uplink": "edge site"}
LEAST = 1e-5  # start of the axis; policies with less distortion are drawn there
LIMIT_S = 10.0  # limit of the mean TTFT


def draw(tables: Mapping[str, Stored]) -> Figure:
    rows = completed(tables["cost"])
    rows = rows.assign(usd=1000 * rows.cost_usd / rows["requests.completed"])
    means = rows.groupby(["network", "bitrate"])[["usd", "distortion.mean", "ttft_s.mean"]].mean()
    policies = [name for name in BITRATES if name in set(rows.bitrate)]
    look = looks(policies)
    figure = Figure(figsize=(6.8, 3.4))
    for index, (place, title) in enumerate(PLACES.items()):
        axes = figure.add_subplot(1, len(PLACES), index + 1)
        for policy in policies:
            at = means.loc[(place, policy)]
            fill: dict[str, Any] = {} if at["ttft_s.mean"] <= LIMIT_S else {"markerfacecolor": "none"}
            label = policy if index == 0 else None
            axes.plot(max(at["distortion.mean"], LEAST), at.usd, linestyle="none", markersize=6, label=label, **look[policy], **fill)
        axes.set_xscale("log")
        axes.set_xlim(LEAST / 2, 0.5)
        axes.set_xticks([1e-5, 1e-3, 1e-1], ["lossless", "0.001", "0.1"])
        axes.set_xticks([], minor=True)
        axes.set_ylim(0, 1.12 * means.loc[place].usd.max())
        axes.set_title(title)
        axes.set_xlabel("mean distortion")
        if index == 0:
            axes.set_ylabel("USD per 1,000 requests")
    figure.legend(loc="outside upper left", ncols=4, handletextpad=0.2, columnspacing=1.2)
    return figure

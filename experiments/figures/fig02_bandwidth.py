"""Time to first token against bandwidth, one request at a time, simulated with the costs that `abkt profile` measured.

Below: relative to raw. The dashed line is the bandwidth at which 4 bits save as much time on the wire as their coding takes. To its right
compression loses, and policies that test the break-even send raw."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from experiments.figures.stored import Stored, completed
from experiments.figures.style import BITRATES, looks

INPUTS = ("bandwidth",)


def draw(tables: Mapping[str, Stored]) -> Figure:
    rows = completed(tables["bandwidth"])
    means = rows.pivot_table(index="network.gbps", columns="bitrate", values="ttft_s.mean")
    policies = [name for name in BITRATES if name in means]
    look = looks(policies)
    figure = Figure(figsize=(6.0, 5.0))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for policy in policies:
        style = {**look[policy], "markersize": 4, "linewidth": 1.4, "markerfacecolor": "none"}
        above.plot(means.index, means[policy], label=policy, **style)
        below.plot(means.index, means[policy] / means["raw"], **style)
    limit = tables["bandwidth"].facts["break_even_gbps"]
    for axes in (above, below):
        axes.axvline(limit, color="#555555", linewidth=1.1, linestyle="--")
    above.annotate(f"break-even {limit:.2g} Gbit/s", (limit, 0.96), xycoords=("data", "axes fraction"), xytext=(4, 0),
                   textcoords="offset points", va="top", fontsize=9, color="#444444")  # fmt: skip
    above.set(xscale="log", yscale="log", ylabel="mean TTFT (s)")
    above.set_yticks([0.2, 0.3, 0.5, 1, 2, 3], ["0.2", "0.3", "0.5", "1", "2", "3"])
    above.set_yticks([], minor=True)
    below.axhline(1, color="#777777", linewidth=0.8, linestyle=":")
    below.set_ylabel("relative to raw")
    below.set_ylim(bottom=0)
    below.set_xlabel("bandwidth (Gbit/s)")
    below.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2)
    return figure

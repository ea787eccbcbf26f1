"""The effect of layout alone: calls and latency of moving the raw KV of one prompt, by the layout of the pool.

Measured on this machine between two pools, through shared memory and through a socket (solid), beside FlowKV's published figures between
GPUs (dashed; arXiv 2504.03775). The gain is small where a call costs little, as here, and large where each call is a launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.figures.stored import Stored
from experiments.figures.style import POLICY_COLOURS

INPUTS = ("layout",)
LAYOUTS = {"layer-wise": POLICY_COLOURS[3], "block-wise": POLICY_COLOURS[2], "block-contiguous": POLICY_COLOURS[1]}
SOURCES: dict[str, tuple[Literal["-", "--"], str, str]] = {
    "shm": ("-", "o", "shared memory"),
    "unix": ("-", "s", "Unix socket"),
    "tcp": ("-", "^", "TCP"),
    "published": ("--", "x", "published"),
}


def draw(tables: Mapping[str, Stored]) -> Figure:
    rows = tables["layout"].rows
    sources = [name for name in SOURCES if name in set(rows.transport)]
    figure = Figure(figsize=(6.4, 3.9))
    calls, latency = figure.subplots(1, 2, width_ratios=(2, 3))
    for layout, colour in LAYOUTS.items():
        for source in sources:
            line = rows[(rows.layout == layout) & (rows.transport == source)].sort_values("tokens")
            if len(line):
                style, marker, _ = SOURCES[source]
                latency.plot(
                    line.tokens, line.seconds, style, color=colour, marker=marker, markersize=4, markerfacecolor="none", linewidth=1.2
                )
        counted = rows[(rows.layout == layout) & (rows.transport != "published")].groupby("tokens").calls.first()
        calls.plot(counted.index, counted, "-", color=colour, marker="o", markersize=4, markerfacecolor="none", linewidth=1.2)
    for axes, label in ((calls, "calls for one prompt"), (latency, "latency (s)")):
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        axes.set_xticks([500, 1000, 4000, 10000], ["500", "1k", "4k", "10k"])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
    handles = [Line2D([], [], color=colour, label=layout) for layout, colour in LAYOUTS.items()]
    handles += [
        Line2D([], [], color="#777777", linestyle=style, marker=marker, markerfacecolor="none", label=label)
        for style, marker, label in (SOURCES[source] for source in sources)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure

"""Distribution of the time to the first token of the decode side; measured solid, predicted dashed."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.figures.style import LINES, WORLDS, colours
from experiments.study.folder import Study


def draw(study: Study, width_in: float) -> Figure:
    figure = Figure(figsize=(width_in, 4.6))
    axes = figure.subplots()
    colour = colours(study.policies)
    for policy in study.policies:
        for world, line in LINES.items():
            seconds = np.sort(study.done(world, policy).ttft_s.dropna())
            if len(seconds):
                shares = np.arange(len(seconds) + 1) / len(seconds)
                axes.step([seconds[0], *seconds], shares, line, where="post", color=colour[policy], linewidth=1.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    limit_s = study.summary["slo"]["ttft_s"]
    axes.axvline(limit_s, color="#777777", linewidth=1, linestyle=":")
    axes.set_xlim(right=max(axes.get_xlim()[1], limit_s * 1.5))
    axes.annotate(f"SLO {limit_s:g} s", (limit_s, 0.04), xytext=(4, 0), textcoords="offset points", fontsize=9, color="#555555")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("time to first token (s)")
    axes.set_ylabel("share of requests")
    lines = [Line2D([], [], color=colour[policy], label=policy) for policy in study.policies]
    worlds = [Line2D([], [], color="#777777", linestyle=LINES[w], label=WORLDS[w]) for w in WORLDS]
    figure.legend(handles=[*lines, *worlds], loc="outside upper left", ncols=9 if width_in > 6 else 3, handlelength=1.8, columnspacing=1.2)
    return figure

"""Each request's time to first token, predicted against measured (the mean over the repeats); the grey band is 20 % to either side."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.style import colours, markers
from experiments.study.folder import Study


def draw(study: Study, width_in: float) -> Figure:
    figure = Figure(figsize=(width_in, 4.6))
    axes = figure.subplots()
    colour, marker = colours(study.policies), markers(study.policies)
    reach: list[float] = []
    for policy in study.policies:
        measured = study.done("real", policy).groupby("request_id").ttft_s.mean().reset_index()
        both = measured.merge(study.done("simulated", policy), on="request_id", suffixes=("", "_simulated"))
        axes.scatter(
            both.ttft_s,
            both.ttft_s_simulated,
            s=22,
            marker=marker[policy],
            facecolors="none",
            edgecolors=colour[policy],
            linewidths=1.1,
            label=policy,
        )
        reach += [*both.ttft_s, *both.ttft_s_simulated]
    seconds = [s for s in reach if s > 0]
    low, high = (min(seconds) / 1.2, max(seconds) * 1.2) if seconds else (0.1, 1.0)
    diagonal = np.array([low, high])
    axes.fill_between(diagonal, diagonal * 0.8, diagonal * 1.2, color="#EEEEEE", zorder=0)
    axes.plot(diagonal, diagonal, color="#777777", linewidth=1, zorder=1)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}" if high / low < 8 else "")
    axes.set_xlabel("measured time to first token (s)")
    axes.set_ylabel("predicted (s)")
    axes.legend(loc="upper left", ncols=2)
    return figure

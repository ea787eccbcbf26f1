"""Quality against bytes: rise in negative log-likelihood of the continuation against wire bytes, for our codec and published ones.

The probe, on recall answers and on held-out text; bars are 95 % intervals over prompts. Left and low is better; at the dotted line nothing
is lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.figures.stored import Stored
from experiments.figures.style import colours, markers

INPUTS = ("quality",)
SHOWN = {
    "ours-entropy": "ours, entropy coder",
    "ours": "ours, fixed coder",
    "uniform": "ours, all heads alike",
    "cachegen": "CacheGen's bins",
    "cachegen2": "CacheGen's bins, coarser",
    "kivi": "KIVI (2, 3, 4 bits)",
    "int": "int a token (2, 4, 8 bits)",
    "fp8": "FP8",
}
FAMILIES = {"kivi2": "kivi", "kivi3": "kivi", "kivi4": "kivi", "int2": "int", "int4": "int", "int8": "int"}
TITLES = {"recall": "recall answers", "text": "held-out text"}
LINEAR = 0.01  # below this rise the axis is linear


def draw(tables: Mapping[str, Stored]) -> Figure:
    rows = tables["quality"].rows
    rows = rows[~rows.rate.str.contains("then")]  # those are refined during decoding
    rows = rows.assign(method=rows.method.replace(FAMILIES))
    kinds = [kind for kind in TITLES if kind in set(rows.kind)]
    methods = [method for method in SHOWN if method in set(rows.method)]
    colour, marker = colours(methods), markers(methods)
    figure = Figure(figsize=(6.4, 3.6))
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), place + 1)
        for method in methods:
            line = rows[(rows.kind == kind) & (rows.method == method)].sort_values("of_raw")
            errors = [line.dnll - line.dnll_low, line.dnll_high - line.dnll]
            look: dict[str, Any] = {"color": colour[method], "marker": marker[method], "markersize": 4, "linewidth": 1.3, "elinewidth": 0.8}
            axes.errorbar(line.of_raw, line.dnll, errors, label=SHOWN[method] if place == 0 else None, **look)
        axes.axhline(0, color="#777777", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=LINEAR)
        axes.set_xlim(0.08, 0.6)
        axes.set_xticks([0.1, 0.2, 0.4], ["0.1", "0.2", "0.4"])
        axes.set_xticks([], minor=True)
        axes.set_yticks([-0.01, 0, 0.01, 0.1, 1, 10], ["−0.01", "0", "0.01", "0.1", "1", "10"])
        axes.set_yticks([], minor=True)
        axes.set_ylim(-0.03, 20)
        axes.set_title(TITLES[kind])
        axes.set_xlabel("bytes sent / raw bytes")
        if place == 0:
            axes.set_ylabel("rise in nats per token")
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handlelength=1.6)
    return figure

"""Throughput of the codec's kernels against a limit, the fastest plain copy of the same bytes in the same run (line over each group).

Bars: GB/s of raw KV that are encoded or expanded on one core, by depth in bits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.stored import Stored
from experiments.figures.style import POLICY_COLOURS

INPUTS = ("kernels",)
HATCHES = ("", "////", "....", "xxxx", "----", "++++")


def draw(tables: Mapping[str, Stored]) -> Figure:
    stored = tables["kernels"]
    rows = stored.rows
    depths, lengths = sorted(rows.bits.unique()), sorted(rows.tokens.unique())
    figure = Figure(figsize=(6.4, 3.4))
    width = 0.8 / len(depths)
    for axes, verb in zip(figure.subplots(1, 2, sharey=True), ("encode", "expand"), strict=True):
        part = rows[rows.verb == verb]
        for index, bits in enumerate(depths):
            line = part[part.bits == bits].set_index("tokens").reindex(lengths)
            places = np.arange(len(lengths)) + (index - (len(depths) - 1) / 2) * width
            look = {"color": POLICY_COLOURS[1 + index], "edgecolor": "white", "linewidth": 0.5, "hatch": HATCHES[index]}
            axes.bar(places, line.gbps, width * 0.94, label=f"{bits} bits" if verb == "encode" else None, **look)
        for place, tokens in enumerate(lengths):
            limit = part[part.tokens == tokens].copy_gbps.max()
            label = "plain copy" if verb == "encode" and place == 0 else None
            axes.plot([place - 0.45, place + 0.45], [limit, limit], color="#000000", linewidth=1.6, label=label)
        axes.set_xticks(range(len(lengths)), [f"{tokens:,}" for tokens in lengths])
        axes.grid(axis="x", visible=False)
        axes.set_title(verb)
        axes.set_xlabel("tokens")
        if verb == "encode":
            axes.set_ylabel("GB/s of raw KV")
    figure.legend(loc="outside upper left", ncols=5, title=stored.facts["device"], alignment="left", title_fontsize=9)
    return figure

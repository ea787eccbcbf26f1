"""In the simulator alone: goodput within the SLO, and the 99th percentile of the time to first token, by policy."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.style import POLICY_COLOURS
from experiments.study.folder import Study

HATCHES = ("", "////", "....", "xxxx")


def draw(study: Study, width_in: float) -> Figure:
    figure = Figure(figsize=(width_in, 4.8))
    above, below = figure.subplots(2, 1, sharex=True)
    routings, bitrates = study.summary["routings"], study.summary["bitrates"]
    width = 0.8 / max(1, len(routings))
    for index, routing in enumerate(routings):
        runs = [study.run(f"scaleout/{routing}-{bitrate}") for bitrate in bitrates]
        places = np.arange(len(bitrates)) + (index - (len(routings) - 1) / 2) * width
        look = {"width": width * 0.94, "color": POLICY_COLOURS[1 + index], "hatch": HATCHES[index % len(HATCHES)], "edgecolor": "white"}
        above.bar(places, [run["goodput_per_s"] for run in runs], label=routing, **look)
        below.bar(places, [run["ttft_s"]["p99"] or 0.0 for run in runs], **look)
    limit_s = study.summary["scaleout_slo"]["ttft_s"]
    below.axhline(limit_s, color="#777777", linewidth=1, linestyle=":")
    below.annotate(
        f"SLO {limit_s:g} s", (1.0, limit_s), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9, color="#555555"
    )
    above.set_ylabel("goodput (requests/s)")
    below.set_ylabel("p99 TTFT (s)")
    slanted = {"rotation": 35, "ha": "right"} if len(bitrates) > 6 else {}  # so that their names do not overlap
    below.set_xticks(range(len(bitrates)), bitrates, **slanted)
    for axes in (above, below):
        axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=4, title="not validated on hardware here", alignment="left", title_fontsize=9)
    return figure

"""Where a request's time goes: mean exposed seconds of each stage, measured above predicted, for each policy."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from abkt.records import STAGES
from experiments.figures.style import STAGE_COLOURS, WORLDS
from experiments.study.folder import Study


def draw(study: Study, width_in: float) -> Figure:
    policies = study.policies
    figure = Figure(figsize=(width_in, 1.1 + 0.5 * len(policies)))
    axes = figure.subplots()
    for row, policy in enumerate(policies):
        for world, offset in (("real", -0.2), ("simulated", 0.2)):
            means = study.done(world, policy)[[f"{stage}_exposed_s" for stage in STAGES]].mean()
            left = 0.0
            for stage, seconds in zip(STAGES, means, strict=True):
                hatch = "" if world == "real" else "////"
                axes.barh(row + offset, seconds, 0.36, left, color=STAGE_COLOURS[stage], edgecolor="white", linewidth=0.4, hatch=hatch)
                left += seconds
    axes.set_yticks(range(len(policies)), policies)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("mean exposed time per request (s)")
    stages = [Patch(facecolor=STAGE_COLOURS[stage], label=stage) for stage in STAGES]
    worlds = [Patch(facecolor="#888888", edgecolor="white", hatch="" if w == "real" else "////", label=WORLDS[w]) for w in WORLDS]
    figure.legend(handles=[*stages, *worlds], loc="outside upper left", ncols=8 if width_in > 6 else 3, handlelength=1.4, columnspacing=1.2)
    return figure

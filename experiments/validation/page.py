"""report.html of a validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.page import Page, Section, Table, origin, picture, write_page
from experiments.report.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MARKS = (("queue", "queueing", "^"), ("ttft", "TTFT", "o"), ("e2e", "E2E", "s"))


def write_report(
    folder: Path,
    facts: Mapping[str, Any],
    answer: Verdict,
    trust: str,
    tables: Mapping[str, Table],
    errors: pd.DataFrame,
    manifest: Mapping[str, Any],
) -> Path:
    """Write report.html. facts: as document.document takes them. tables: title -> table, in order. errors: as scores.errors gives them."""
    lead = f"{facts['cluster']}, compute={facts['compute']}, {facts['requests']} requests a run, {facts['repeats']} repeats. {trust}"
    first, *rest = tables.items()
    drawn = picture(lambda width: draw(errors, width), "Predicted against measured means of queueing, TTFT and E2E", "Means of each run.")
    sections = [
        Section(first[0], table=first[1]),
        Section("Predicted against measured", "On the line the two are equal; the band is 10 % to either side.", pictures=[drawn]),
        *(Section(title, table=table) for title, table in rest),
        Section("Conditions", points=[f"{name}: {words}." for name, words in facts["conditions"].items()]),
        Section("Emulated", points=list(facts["emulated"])),
    ]
    return write_page(folder / "report.html", Page("Validation of the simulator", lead, answer, sections, origin(manifest)))


def draw(errors: pd.DataFrame, width_in: float) -> Figure:
    import numpy as np
    from matplotlib.figure import Figure

    means = errors[(errors["quantile"] == "mean") & errors.stage.isin([stage for stage, _, _ in MARKS])]
    means = means[(means.measured_s > 0) & (means.predicted_s > 0)]
    figure = Figure(figsize=(width_in, min(5.5, 0.8 * width_in)))
    axes = figure.subplots()
    if len(means):
        ends = np.array([0.7 * means[["measured_s", "predicted_s"]].min().min(), 1.4 * means[["measured_s", "predicted_s"]].max().max()])
        axes.fill_between(ends, 0.9 * ends, 1.1 * ends, color="#EEEEEE", zorder=0)
        axes.plot(ends, ends, color="#777777", linewidth=1)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    for (stage, label, mark), colour in zip(MARKS, ("#D55E00", "#0072B2", "#009E73"), strict=True):
        some = means[means.stage == stage]
        reach = np.abs([some.measured_s - some.measured_low_s, some.measured_high_s - some.measured_s])
        axes.errorbar(some.measured_s, some.predicted_s, xerr=reach, fmt=mark, color=colour, markerfacecolor="none", label=label)
    axes.set(xlabel="measured (s)", ylabel="predicted (s)")
    axes.legend(loc="upper left")
    return figure

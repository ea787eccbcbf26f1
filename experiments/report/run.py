"""One run in figures and words: the same table and lines for `abkt simulate` and `abkt replay`, on the terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abkt.records import OUTCOMES, SLO, STAGES
from experiments.report import words
from experiments.report.page import Page, Picture, Section, Table, picture

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TIMES = (
    ("TTFT (s)", "ttft_s", 1.0),
    ("TPOT (ms)", "tpot_s", 1e3),
    ("ITL (ms)", "itl_s", 1e3),
    ("E2E (s)", "e2e_s", 1.0),
    ("exposed transfer (s)", "transfer_exposed_s", 1.0),
)
QUANTILES = ("mean", "p50", "p90", "p99")
ITL_NOTE = "ITL: gaps between two tokens of all requests, each taken as its request's mean gap; a stall within a request is not seen."


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a report says about one run.

    Parameters
    ----------
    title : such as `200 requests, bitrate embedded`.
    plan : the run in a sentence: requests, cluster and link.
    summary : as in summary.json.
    slo : limits of the run.
    known : what the costs were measured on, for `outside of …`; empty where nothing was estimated.
    """

    title: str
    plan: str
    summary: Mapping[str, Any]
    slo: SLO
    known: str = ""

    def table(self) -> Table:
        """Mean and quantiles of the times of a request."""
        return times_table(self.summary)

    def lines(self) -> list[str]:
        """What the table does not say, a sentence each: the SLO, bytes, cost, distortion, and how far the figures can be trusted."""
        s = self.summary
        total, within = s["requests"]["initiated"], f"TTFT {words.seconds(self.slo.ttft_s)}, TPOT {words.seconds(self.slo.tpot_s)}"
        lines = [
            f"{words.percent(s['good_share'])} of {words.plural(total, 'request')} within the SLO ({within}): "
            f"goodput {words.number(s['goodput_per_s'])} of {words.number(s['throughput_per_s'])} requests/s"
        ]
        share = f" ({words.percent(s['wire_bytes'] / s['raw_bytes'])})" if s["raw_bytes"] else ""
        cost = f", cost {words.number(s['cost_usd'])} USD" if s["cost_usd"] else ""
        lines.append(f"{words.size(s['wire_bytes'])} of {words.size(s['raw_bytes'])} sent{share}{cost}")
        if s["distortion"]:
            lines.append(f"distortion mean {words.number(s['distortion']['mean'])}, p99 {words.number(s['distortion']['p99'])}")
        if "prediction" in s:
            half = {name: words.seconds(s["prediction"][f"{name}_half_width_s"]) for name in ("ttft", "e2e")}
            unknown = ", ".join(s["prediction"]["error_unknown"])
            lines.append(
                f"95 % of predictions: TTFT ± {half['ttft']}, E2E ± {half['e2e']} on average"
                + (f"; the error of {unknown} was not measured" if unknown else "")
            )
        if s["extrapolated_share"] and self.known:
            lines.append(f"{words.percent(s['extrapolated_share'])} of the requests lie outside of what {self.known}: extrapolated")
        return lines

    def page(self, requests: pd.DataFrame, facts: Mapping[str, str]) -> Page:
        """The page. requests: the records of the run."""
        done = requests[requests.outcome == OUTCOMES[0]]
        first, *rest = self.lines()
        sections = [Section("Times of a request", points=[_sentence(line) for line in rest], table=self.table())]
        if len(done):
            sections.append(Section("How it spreads, and where the time goes", pictures=pictures(done, self.slo)))
        scaled = scaling_lines(self.summary.get("scaling") or {})
        sections.append(Section("What was run", _sentence(self.plan), [_sentence(line) for line in scaled]))
        return Page(self.title, _sentence(first), None, sections, facts)


def times_table(summary: Mapping[str, Any]) -> Table:
    rows = [(name, *(_fixed(summary[key][q], factor) for q in QUANTILES)) for name, key, factor in TIMES if key in summary]
    return Table(("", *QUANTILES), rows, ITL_NOTE)


def outcome_title(summary: Mapping[str, Any]) -> str:
    counts = summary["requests"]
    return ", ".join(f"{words.count(counts[name])} {name}" for name in OUTCOMES) + f" in {words.seconds(summary['wall_s'])}"


def scaling_lines(scaling: Mapping[str, Any]) -> list[str]:
    """How the workload was made from its trace: what was scaled, clipped or borrowed."""
    lines = []
    if "requests_in_trace" in scaling:
        lines.append(f"{words.count(scaling['requests'])} of the trace's {words.plural(scaling['requests_in_trace'], 'request')}")
    for name, what in (("isl", "prompt"), ("osl", "output")):
        before, after, clipped = (scaling.get(f"{name}_{key}") for key in ("mean_before", "mean_after", "clipped"))
        if before and after and abs(after / before - 1) > 0.005:
            lines.append(
                f"{what} lengths scaled: mean {words.number(float(before))} tokens in the trace, {words.number(float(after))} here"
            )
        if clipped:
            lines.append(f"the {what} of {words.plural(int(clipped), 'request')} was clipped to the allowed range")
    before, after = scaling.get("rate_per_s_before"), scaling.get("rate_per_s_after")
    if before and after and abs(after / before - 1) > 0.005:
        lines.append(f"arrivals scaled: {words.number(float(before))} requests/s in the trace, {words.number(float(after))} here")
    if borrowed := scaling.get("lengths_of_other_clients"):
        lines.append(f"{words.percent(borrowed)} of the requests have lengths of other clients, because theirs were not recorded")
    return lines


def pictures(requests: pd.DataFrame, slo: SLO) -> list[Picture]:
    """requests: completed ones."""
    return [
        picture(
            lambda width: draw_cdf(requests, slo, width), "Share of requests by TTFT, with the limit of the SLO", "Time to first token."
        ),
        picture(
            lambda width: draw_stages(requests, width), "Mean exposed time of each stage", "Exposed time of each stage: they sum to E2E."
        ),
    ]


def draw_cdf(requests: pd.DataFrame, slo: SLO, width_in: float) -> Figure:
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, 3.2))
    axes = figure.subplots()
    found = np.sort(requests.ttft_s.to_numpy(float))
    axes.step(found, np.arange(1, len(found) + 1) / len(found), where="post", color="#0072B2")
    limit_line(axes, slo.ttft_s, float(found[-1]))
    axes.set(xlabel="TTFT (s)", ylabel="share of requests", ylim=(0, 1.02), xlim=(0, None))
    return figure


def limit_line(axes: Any, limit_s: float, largest_s: float) -> None:
    """The SLO as a line with its name above; where it lies far right of all values, a word at the edge instead."""
    said = f"SLO {words.seconds(limit_s)}"
    if limit_s <= 1.6 * largest_s:
        axes.axvline(limit_s, color="#555555", linestyle=":")
        axes.annotate(said, (limit_s, 1.01), xycoords=axes.get_xaxis_transform(), ha="center", va="bottom", color="#555555", fontsize=9)
    else:
        axes.annotate(f"{said} →", (1, 1.01), xycoords="axes fraction", ha="right", va="bottom", color="#555555", fontsize=9)


def draw_stages(requests: pd.DataFrame, width_in: float) -> Figure:
    from matplotlib.figure import Figure

    from experiments.figures.style import STAGE_COLOURS

    figure = Figure(figsize=(width_in, 3.2))
    axes = figure.subplots()
    means = [float(requests[f"{stage}_exposed_s"].mean()) for stage in STAGES]
    bars = axes.barh(STAGES, means, color=[STAGE_COLOURS[stage] for stage in STAGES])
    axes.bar_label(bars, [words.seconds(value) for value in means], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="mean exposed time (s)", xlim=(0, 1.25 * max(means) or 1.0))
    axes.grid(axis="y", visible=False)
    return figure


def show_run(report: RunReport) -> None:
    """Print the table and the lines of a run."""
    from experiments.report.terminal import show_lines, show_table

    show_table(report.table(), outcome_title(report.summary))
    show_lines(report.lines())


def write_run(folder: Path, report: RunReport, manifest: Mapping[str, Any]) -> Path:
    """Write report.html from the records in the folder; returns its path."""
    from experiments.lib.results import read_records
    from experiments.report.page import origin, write_page

    return write_page(folder / "report.html", report.page(read_records(folder / "requests.parquet"), origin(manifest)))


def _fixed(value: float | None, factor: float) -> str:
    if value is None or value != value:
        return words.NOTHING
    return f"{value * factor:,.3f}" if factor == 1.0 else f"{value * factor:,.1f}"


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."

"""The tables of an adaptation run, on the terminal and as report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.adaptation.comparison import Comparison
from experiments.adaptation.winner import verdict
from experiments.report import words
from experiments.report.page import Page, Section, Table, origin, picture, write_page
from experiments.report.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("policy", "within SLO", "exposed p99", "mean TTFT", "worst TTFT", "mean distortion", "p99", "of raw bytes")


def where(network: str, comparison: Comparison) -> str:
    return f"{network} within the distortion of {comparison.bits:g} bits"


def rows_table(comparison: Comparison) -> Table:
    """The figures of every policy of one comparison; the winner is marked."""
    rows = [
        (
            name,
            words.percent(row["within_slo"]),
            *(words.seconds(row[key]) for key in ("exposed_p99_s", "ttft_mean_s", "ttft_worst_s")),
            *(words.number(row[key]) for key in ("distortion_mean", "distortion_p99")),
            words.percent(row["wire_share"]),
        )
        for name, row in comparison.rows.items()
    ]
    best = comparison.winner.policy if comparison.winner and comparison.winner.told_apart else None
    limits = (
        f"D {words.number(comparison.bounds.mean)}, SLO: TTFT {words.seconds(comparison.slo_ttft_s)}. The oracle knows the link's future."
    )
    return Table(COLUMNS, rows, limits, best=list(comparison.rows).index(best) if best else None)


def answers_table(network: str, comparisons: Sequence[Comparison]) -> Table:
    """The last table: who wins each comparison."""
    rows = []
    for comparison in comparisons:
        found, answer = comparison.winner, verdict(comparison.winner, where(network, comparison))
        margin = (
            f"{found.against['ratio']:.2f} [{found.against['low']:.2f}, {found.against['high']:.2f}]" if found and found.against else "–"
        )
        named = {"use": answer.policy, "tie": f"tie; take {answer.policy}", "no_answer": "none"}[answer.kind]
        rows.append(
            (f"{comparison.bits:g} bits", words.number(comparison.bounds.mean), named or "none", found.second if found else "–", margin)
        )
    note = "Lowest mean TTFT among the policies that keep the bounds, without the oracle; 95 % interval over the repeats."
    return Table(("distortion of", "D", "winner", "next", "mean TTFT against the next"), rows, note, left=("winner", "next"))


def lines(comparison: Comparison) -> list[str]:
    """The ratios of one comparison, a sentence each."""
    said = []
    for name, ttft in comparison.ttft.items():
        rivals = [f"{_interval(comparison.against[rival][name])} of {rival}'s" for rival in comparison.against]
        said.append(f"{name}: p99 exposed {', '.join(rivals)}; mean TTFT {_interval(ttft)} of the oracle's")
    for name, against in comparison.even.items():
        figures = ", ".join(f"{_interval(made)} of the {key.replace('_', ' ').replace('ttft', 'TTFT')}" for key, made in against.items())
        said.append(f"{name}, to {next(iter(comparison.ttft))}: {figures}")
    return said + [f"{name} {reason}" for name, reason in comparison.missing.items()]


def overall(network: str, comparisons: Sequence[Comparison]) -> Verdict:
    """The answer over all comparisons: the policy that wins each of them, if one does."""
    answers = [verdict(comparison.winner, where(network, comparison)) for comparison in comparisons]
    if len(answers) == 1:
        return answers[0]
    named = {answer.policy for answer in answers if answer.kind == "use"}
    if len(named) == 1 and all(answer.kind == "use" for answer in answers):
        (policy,) = named
        return Verdict("use", policy, f"Use {policy} on {network}: it has the lowest mean TTFT at each of {len(answers)} distortions", "")
    each = "; ".join(f"{c.bits:g} bits: {a.policy or 'no answer'}" for c, a in zip(comparisons, answers, strict=True))
    return Verdict("no_answer", None, f"No one policy wins on {network} at every distortion", each)


def write_report(
    folder: Path, network: str, facts: Mapping[str, Any], comparisons: Sequence[Comparison], manifest: Mapping[str, Any]
) -> Path:
    """Write report.html. facts: world, requests and repeats."""
    where_run = "in the simulator" if facts["world"] == "simulated" else "on real processes of this machine"
    lead = f"{facts['requests']:,} requests in {words.plural(facts['repeats'], 'repeat')}, network {network}, {where_run}."
    sections = [Section("Who wins", table=answers_table(network, comparisons))]
    for comparison in comparisons:
        drawn = picture(
            lambda width, of=comparison: draw(of, width),  # type: ignore[misc]
            f"p99 exposed transfer time and mean TTFT of each policy within the distortion of {comparison.bits:g} bits",
        )
        points = [f"{line[0].upper()}{line[1:]}." for line in lines(comparison)]
        title = f"Within the distortion of {comparison.bits:g} bits"
        sections.append(Section(title, points=points, table=rows_table(comparison), pictures=[drawn]))
    page = Page(f"Adapting to {network}", lead, overall(network, comparisons), sections, origin(manifest))
    return write_page(folder / "report.html", page)


def draw(comparison: Comparison, width_in: float) -> Figure:
    from matplotlib.figure import Figure

    names = list(comparison.rows)
    figure = Figure(figsize=(width_in, 0.6 + 0.42 * len(names)))
    axes, places = figure.subplots(), np.arange(len(names))
    for offset, key, label, colour in (
        (-0.2, "ttft_mean_s", "mean TTFT", "#0072B2"),
        (0.2, "exposed_p99_s", "p99 exposed transfer", "#E69F00"),
    ):
        values = [comparison.rows[name][key] for name in names]
        axes.barh(places + offset, [v if np.isfinite(v) else 0.0 for v in values], 0.38, label=label, color=colour)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(axis="y", visible=False)
    return figure


def _interval(made: Mapping[str, float]) -> str:
    return f"{made['ratio']:.2f} [{made['low']:.2f}, {made['high']:.2f}]"

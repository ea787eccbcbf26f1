"""The tables of an adaptation run, on the terminal and as report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.adaptation.comparison import Comparison
from experiments.adaptation.winner import points, verdict
from experiments.report import words
from experiments.report.page import Page, Section, Table, origin, picture, write_page
from experiments.report.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P99_COLUMN = "exposed p99"
COLUMNS = ("policy", "within SLO", P99_COLUMN, "mean TTFT", "worst TTFT", "mean distortion", "p99", "of raw bytes", "set to")


def where(network: str, comparison: Comparison) -> str:
    return f"{network} within the distortion of {comparison.bits:g} bits"


def rows_table(comparison: Comparison) -> Table:
    """The figures of every policy of one comparison; the winner is marked. A p99 of times is left out where requests are too few for it."""
    has_p99 = all("exposed_p99_s" in row for row in comparison.rows.values())
    times = ("exposed_p99_s", "ttft_mean_s", "ttft_worst_s") if has_p99 else ("ttft_mean_s", "ttft_worst_s")
    rows = [
        (
            name,
            words.percent(row["within_slo"]),
            *(words.seconds(row[key]) for key in times),
            *(words.number(row[key]) for key in ("distortion_mean", "distortion_p99")),
            words.percent(row["wire_share"]),
            comparison.settings[name],
        )
        for name, row in comparison.rows.items()
    ]
    best = comparison.winner.policy if comparison.winner and comparison.winner.told_apart else None
    limits = (
        f"D {words.number(comparison.bounds.mean)}, SLO: TTFT {words.seconds(comparison.slo_ttft_s)}. The oracle knows the link's future. "
        f"The limit starts every request at 8 D over a known link, which no bound of the mean allows."
    )
    columns = COLUMNS if has_p99 else tuple(column for column in COLUMNS if column != P99_COLUMN)
    return Table(columns, rows, limits, best=list(comparison.rows).index(best) if best else None, left=("set to",))


def pairs_table(comparison: Comparison, name: str) -> Table:
    """One policy of ours against every other row."""
    pairs = comparison.against[name]
    has_p99 = all(made.exposed_p99 is not None for made in pairs.values())
    rows = [
        (
            other,
            points(made.within_slo),
            made.on_slo,
            _interval(made.ttft_mean),
            made.on_ttft,
            *([_interval(made.exposed_p99)] if has_p99 and made.exposed_p99 else []),
            _interval(made.distortion_mean),
        )
        for other, made in pairs.items()
    ]
    columns = ("against", "within SLO, points", "so", "of its mean TTFT", "so, on TTFT", *([f"of its {P99_COLUMN}"] if has_p99 else []))
    note = (
        "95 % intervals over the repeats, in pairs. A win is at least the margin and has an interval above 0; a tie lies within the margin."
    )
    return Table((*columns, "of its distortion"), rows, note, left=("so", "so, on TTFT"))


def answers_table(network: str, comparisons: Sequence[Comparison]) -> Table:
    """The last table: who wins each comparison."""
    rows = []
    for comparison in comparisons:
        found, answer = comparison.winner, verdict(comparison.winner, where(network, comparison))
        margin = points(found.against.within_slo) if found and found.against else "–"
        tied = f"tie with the next; take {'it' if found and answer.policy == found.policy else 'the next'}"
        named = {"use": answer.policy, "tie": f"{found.policy if found else ''}: {tied}", "no_answer": "none"}[answer.kind]
        rows.append(
            (f"{comparison.bits:g} bits", words.number(comparison.bounds.mean), named or "none", found.second if found else "–", margin)
        )
    note = "Most requests within the SLO among the policies that keep the bounds, without oracle, limit and parts; 95 % interval."
    return Table(("distortion of", "D", "winner", "next", "points within SLO over the next"), rows, note, left=("winner", "next"))


def lines(comparison: Comparison) -> list[str]:
    """What the tables of one comparison do not hold, a sentence each."""
    said = []
    for name, against in comparison.even.items():
        figures = ", ".join(f"{_interval(made)} of the {key.replace('_', ' ').replace('ttft', 'TTFT')}" for key, made in against.items())
        said.append(f"{name}, to {next(iter(comparison.against))}: {figures}")
    return said + [f"{name} {reason}" for name, reason in comparison.missing.items()]


def overall(network: str, comparisons: Sequence[Comparison]) -> Verdict:
    """The answer over all comparisons: the policy that wins each of them, if one does."""
    answers = [verdict(comparison.winner, where(network, comparison)) for comparison in comparisons]
    if len(answers) == 1:
        return answers[0]
    named = {answer.policy for answer in answers if answer.kind == "use"}
    if len(named) == 1 and all(answer.kind == "use" for answer in answers):
        (policy,) = named
        return Verdict("use", policy, f"Use {policy} on {network}: it keeps the SLO most often at each of {len(answers)} distortions", "")
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
            f"requests within the SLO and mean TTFT of each policy within the distortion of {comparison.bits:g} bits",
        )
        sentences = [f"{line[0].upper()}{line[1:]}." for line in lines(comparison)]
        title = f"Within the distortion of {comparison.bits:g} bits"
        sections.append(Section(title, points=sentences, table=rows_table(comparison), pictures=[drawn]))
        sections += [Section(f"{name}, {title.lower()}", table=pairs_table(comparison, name)) for name in comparison.against]
    page = Page(f"Adapting to {network}", lead, overall(network, comparisons), sections, origin(manifest))
    return write_page(folder / "report.html", page)


def draw(comparison: Comparison, width_in: float) -> Figure:
    from matplotlib.figure import Figure

    names = list(comparison.rows)
    figure = Figure(figsize=(width_in, 0.6 + 0.26 * len(names)))
    shares, times = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(names))
    for axes, key, factor, label, colour in (
        (shares, "within_slo", -100.0, "% of requests that miss the SLO", "#0072B2"),
        (times, "ttft_mean_s", 1.0, "mean TTFT, seconds", "#E69F00"),
    ):
        values = [factor * comparison.rows[name][key] + (100.0 if factor < 0 else 0.0) for name in names]
        axes.barh(places, [v if np.isfinite(v) else 0.0 for v in values], 0.6, color=colour)
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
    shares.set_yticks(places, names)
    shares.invert_yaxis()
    return figure


def _interval(made: Mapping[str, float]) -> str:
    return f"{made['ratio']:.2f} [{made['low']:.2f}, {made['high']:.2f}]"

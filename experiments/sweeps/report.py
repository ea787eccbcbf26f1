"""What a sweep says at its end: a short table on the terminal, and a page with plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from experiments.report import words
from experiments.report.page import Page, Picture, Section, Table, picture
from experiments.report.run import limit_line
from experiments.report.verdict import Verdict
from experiments.sweeps.winner import Candidate, Contest, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PLOTS = 6  # pairs of plots on a page
WIDE = 20  # ratio of the largest to the least value from which on an axis is logarithmic
FIGURES = (
    ("within the SLO", "good_share", words.percent),
    ("goodput\n(requests/s)", "goodput_per_s", words.number),
    ("mean TTFT\n(s)", "ttft_s.mean", words.number),
    ("p99 TTFT\n(s)", "ttft_s.p99", words.number),
    ("p99 TPOT\n(ms)", "tpot_s.p99", words.ms),
    ("mean E2E\n(s)", "e2e_s.mean", words.number),
    ("sent", "wire_bytes", words.size),
    ("mean\ndistortion", "distortion.mean", words.number),
)


def short_table(found: Sequence[Contest], names: Sequence[str]) -> Table:
    """A row for each condition, or for each candidate where there is only one condition."""
    return candidates_table(found, names) if len(found) == 1 or not Split.of(names).policies else winners_table(found, names)


def winners_table(found: Sequence[Contest], names: Sequence[str]) -> Table:
    conditions = Split.of(names).conditions
    rows = []
    for one in found:
        first = one.ranking[0] if one.ranking else None
        verdict = one.verdict
        winner = {"use": str(verdict.policy), "tie": f"tie: {', '.join(one.best)}", "no_answer": "none"}[verdict.kind]
        margin = f"{one.margins[0].said()} against {one.ranking[1].name}" if one.margins else words.NOTHING
        figures = [show(first.mean(key)) if first else words.NOTHING for _, key, show in FIGURES[:3]]
        rows.append((*(str(one.place[name]) for name in conditions), winner, first.name if first else words.NOTHING, margin, *figures))
    columns = (*conditions, "winner", "leader", "its margin over the next [95 %]", *(name for name, _, _ in FIGURES[:3]))
    return Table(columns, rows, left=(*conditions, "winner", "leader", "its margin over the next [95 %]"))


def candidates_table(found: Sequence[Contest], names: Sequence[str]) -> Table:
    """Every candidate under every condition, means over the seeds, best first."""
    split = Split.of(names)
    rows: list[tuple[str, ...]] = []
    for one in found:
        others = [c for c in one.candidates if c not in one.ranking]
        for candidate in (*one.ranking, *others):
            place = [str(one.place[name]) for name in split.conditions]
            figures = [show(candidate.mean(key)) for _, key, show in FIGURES]
            rows.append((*([candidate.name] if split.policies else []), *place, *figures, one.faults.get(candidate.name, "yes")))
    first = (", ".join(split.policies),) if split.policies else ()
    columns = (*first, *split.conditions, *(name for name, _, _ in FIGURES), "within\nthe limits")
    best = 0 if len(found) == 1 and found[0].verdict.kind == "use" else None
    return Table(columns, rows, best=best, left=(*split.conditions, "within\nthe limits"))


def no_contest(names: Sequence[str]) -> str:
    """Why a grid has no winner at all."""
    return f"No winner: the grid varies no policy ({', '.join(names)}), so there is nothing to choose."


def page(
    found: Sequence[Contest],
    names: Sequence[str],
    verdict: Verdict | None,
    lead: str,
    slo: Mapping[str, float] | None,
    facts: Mapping[str, str],
) -> Page:
    """slo: limits of all points; None where they differ."""
    split = Split.of(names)
    sections = []
    if len(found) > 1 and split.policies:
        sections.append(Section("The winner of each condition", table=winners_table(found, names)))
    sections.append(
        Section("How the candidates compare" if split.policies else "How the conditions compare", pictures=plots(found, names, slo))
    )
    sections.append(Section("All candidates", "Means over the seeds.", table=candidates_table(found, names)))
    lead = lead if verdict else f"{no_contest(names)} {lead}"
    return Page(f"Sweep over {', '.join(names)}", lead, verdict, sections, facts)


def plots(found: Sequence[Contest], names: Sequence[str], slo: Mapping[str, float] | None) -> list[Picture]:
    """Goodput and TTFT: lines over the condition with most numbers, one pair of plots for each combination of the other conditions."""
    split, many = Split.of(names), any(len(c.rows) > 1 for one in found for c in one.candidates)
    numeric = {
        name: len({one.place[name] for one in found}) for name in split.conditions if all(_is_number(one.place[name]) for one in found)
    }
    along = max(numeric, key=lambda name: numeric[name], default="")
    drawn = []
    if not along or numeric[along] < 2:
        for one in found[:MOST_PLOTS]:
            for what, key, label in PLOTTED:
                draw = partial(draw_bars, one, key, label, slo)
                drawn.append(_plot(f"{what}{_at(one.label)}", draw, many))
        return drawn
    rest: dict[str, list[Contest]] = {}
    for one in found:
        rest.setdefault(", ".join(f"{n}={v}" for n, v in one.place.items() if n != along), []).append(one)
    for where, group in list(rest.items())[:MOST_PLOTS]:
        for what, key, label in PLOTTED:
            draw = partial(draw_lines, group, along, key, label, slo)
            drawn.append(_plot(f"{what}{_at(where)}", draw, many))
    return drawn


PLOTTED = (
    ("Goodput at the SLO", "goodput_per_s", "goodput (requests/s)"),
    ("Mean time to first token", "ttft_s.mean", "mean TTFT (s)"),
)


def draw_lines(group: Sequence[Contest], along: str, key: str, label: str, slo: Mapping[str, float] | None, width_in: float) -> Figure:
    import numpy as np
    from matplotlib.figure import Figure

    from experiments.figures.style import log_scale, looks

    figure = Figure(figsize=(width_in, 3.4))
    axes = figure.subplots()
    group = sorted(group, key=lambda one: float(one.place[along]))
    names = list(dict.fromkeys(c.name for one in group for c in one.candidates))
    for name, look in looks(names).items():
        points: list[tuple[float, float, float, float]] = []
        for one in group:
            for candidate in one.candidates:
                if candidate.name == name:
                    low, mean, high = _spread(candidate, key)
                    points.append((float(one.place[along]), low, mean, high))
        places, lows, means, highs = zip(*points)
        axes.plot(places, means, label=name or None, **look)
        axes.fill_between(places, lows, highs, color=look["color"], alpha=0.15, linewidth=0)
    xs = [float(one.place[along]) for one in group]
    if min(xs) > 0 and max(xs) / min(xs) >= WIDE:
        log_scale(axes, "x")
    shown = [y for line in axes.lines for y in np.asarray(line.get_ydata(), float) if y == y]
    if key.startswith("ttft") and shown and min(shown) > 0 and max(shown) / min(shown) >= WIDE:
        log_scale(axes, "y")
    _limit(axes, key, slo)
    axes.set(xlabel=along, ylabel=label)
    if any(names):
        axes.legend(ncols=2 if len(names) > 4 else 1)
    return figure


def draw_bars(one: Contest, key: str, label: str, slo: Mapping[str, float] | None, width_in: float) -> Figure:
    from matplotlib.figure import Figure

    from experiments.figures.style import looks

    figure = Figure(figsize=(width_in, max(2.2, 0.9 + 0.38 * len(one.candidates))))
    axes = figure.subplots()
    names = [c.name or one.label for c in one.candidates]
    spreads = [_spread(c, key) for c in one.candidates]
    means = [mean for _, mean, _ in spreads]
    errors = [[mean - low for low, mean, _ in spreads], [high - mean for _, mean, high in spreads]]
    axes.barh(names, means, xerr=errors, color=[looks(names)[name]["color"] for name in names], ecolor="#555555")
    axes.invert_yaxis()
    if key.startswith("ttft") and slo:
        limit_line(axes, slo["ttft_s"], max(means))
    axes.set(xlabel=label, xlim=(0, None))
    axes.grid(axis="y", visible=False)
    return figure


def _limit(axes: Any, key: str, slo: Mapping[str, float] | None) -> None:
    if key.startswith("ttft") and slo and slo["ttft_s"] < 1.5 * axes.get_ylim()[1]:
        axes.axhline(slo["ttft_s"], color="#555555", linestyle=":")
        place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 2), "textcoords": "offset points"}
        axes.annotate(f"SLO {words.seconds(slo['ttft_s'])}", (0.995, slo["ttft_s"]), ha="right", color="#555555", fontsize=9, **place)


def _plot(title: str, draw: Callable[[float], Figure], seeds: bool) -> Picture:
    return picture(draw, title, f"{title}: the mean, and least to most over the seeds." if seeds else f"{title}.")


def _at(where: str) -> str:
    return f", {where}" if where else ""


def _spread(candidate: Candidate, key: str) -> tuple[float, float, float]:
    """Least, mean and most over the seeds."""
    values = [float(value) for row in candidate.rows.values() if (value := row.get(key)) is not None]
    return (min(values), sum(values) / len(values), max(values)) if values else (float("nan"),) * 3  # type: ignore[return-value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

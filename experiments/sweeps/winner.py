"""The winner of each condition of a grid, with its margin over the seeds, and the answer of the whole grid.

Axes that choose a policy make the candidates, the axis `seed` makes repeats, and every other axis makes conditions. As in a study, the
winner has the most goodput at the SLO among those with mean distortion <= D and p99 distortion <= 8 D; goodputs that are within 1 % or
cannot be told apart are a tie, which the lower mean TTFT wins. A margin is the mean paired difference over the seeds, relative to the
other's mean, with Student's 95 % interval. It counts as a win only if the interval excludes 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.lib.intervals import LEVEL, UNKNOWN, Interval
from experiments.report import words
from experiments.report.verdict import Verdict

POLICIES = ("bitrate", "routing", "roles", "admission", "engine", "transport")  # groups whose axes choose a policy, and their keys
SEED = "seed"
TIE = 0.01  # share of the highest goodput
TAIL = 8.0  # p99 distortion may be this many times the limit of the mean
LEAST_GOOD = 0.05  # share of requests within the SLO that the best candidate needs for an answer
MORE_SEEDS = "Give several seeds, such as seed=0,1,2."

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One policy, or combination of policies, under one condition. rows: one a seed."""

    name: str
    rows: Mapping[Any, Row]

    def mean(self, figure: str) -> float:
        return float(np.mean([_number(row.get(figure)) for row in self.rows.values()]))

    def values(self, figure: str, seeds: Sequence[Any]) -> np.ndarray:
        return np.array([_number(self.rows[seed].get(figure)) for seed in seeds])

    def fault(self, limit: float) -> str:
        """Why it may not win; empty if it may."""
        mean, p99 = self.mean("distortion.mean"), self.mean("distortion.p99")
        if math.isnan(mean) or math.isnan(p99):
            return "no request completed"
        if mean > limit:
            return f"mean distortion {words.number(mean)}"
        return f"p99 distortion {words.number(p99)}" if p99 > TAIL * limit else ""


@dataclass(frozen=True, slots=True)
class Margin:
    """How much better one candidate is than another. figure: `goodput`, or `mean TTFT` where goodputs are a tie. seeds: how many."""

    figure: str
    mean: float
    interval: Interval
    seeds: int

    @property
    def wins(self) -> bool:
        better = self.interval.low > 0 if self.figure == "goodput" else self.interval.high < 0
        return self.seeds > 1 and better

    def said(self) -> str:
        if math.isinf(self.mean):
            return f"{self.figure} where the other has none"
        bounds = words.interval(self.interval.low, self.interval.high)
        return f"{self.figure} {words.change(self.mean)}" + (f" {bounds.removesuffix(' %')}" if bounds != words.NOTHING else "")


@dataclass(frozen=True, slots=True)
class Contest:
    """One condition. place: axis -> value. ranking: candidates that keep the limits, best first. faults: name -> why another may not win.

    margins: of the first against each of the others, in their order. best: names that are not told apart from the first, and the first.
    """

    place: Mapping[str, Any]
    candidates: Sequence[Candidate]
    ranking: Sequence[Candidate]
    faults: Mapping[str, str]
    margins: Sequence[Margin]
    best: Sequence[str]
    verdict: Verdict

    def distortion(self, name: str) -> float:
        return next(c.mean("distortion.mean") for c in self.candidates if c.name == name)

    @property
    def label(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.place.items())


@dataclass(frozen=True, slots=True)
class Split:
    """Names of axes, by what they are."""

    policies: tuple[str, ...]
    conditions: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Split:
        chosen = tuple(name for name in names if name.partition(".")[0] in POLICIES)
        return cls(chosen, tuple(name for name in names if name not in chosen and name != SEED))


def contests(rows: Sequence[Row], names: Sequence[str], limit: float) -> list[Contest]:
    """A contest for each condition. rows: of the sweep's table; failed points are left out. names: of the axes."""
    split, found = Split.of(names), dict[str, tuple[dict[str, Any], dict[str, dict[Any, Row]]]]()
    for row in rows:
        if row["error"]:
            continue
        place = {name: row[name] for name in split.conditions}
        _, named = found.setdefault(str(place), (place, {}))
        named.setdefault(candidate_name(row, split), {})[row.get(SEED)] = row
    return [contest(place, [Candidate(name, seeds) for name, seeds in named.items()], limit) for place, named in found.values()]


def candidate_name(row: Row, split: Split) -> str:
    if len(split.policies) == 1:
        return str(row[split.policies[0]])
    return ", ".join(f"{name}={row[name]}" for name in split.policies)


def contest(place: Mapping[str, Any], candidates: Sequence[Candidate], limit: float) -> Contest:
    faults = {c.name: why for c in candidates if (why := c.fault(limit))}
    left, ranking = [c for c in candidates if c.name not in faults], list[Candidate]()
    while left:
        most = max(c.mean("goodput_per_s") for c in left)
        tied = [c for c in left if c.mean("goodput_per_s") >= most * (1 - TIE)]
        first = min(tied, key=lambda c: (_last(c.mean("ttft_s.mean")), c.name))
        ranking.append(first)
        left.remove(first)
    margins = [margin(ranking[0], other) for other in ranking[1:]]
    best = [c.name for c, m in zip(ranking[1:], margins) if not m.wins]
    return Contest(place, candidates, ranking, faults, margins, [*[c.name for c in ranking[:1]], *best], _answer(ranking, margins, limit))


def margin(first: Candidate, other: Candidate) -> Margin:
    """The margin of the first over the other, over the seeds that both have: of goodput, or of TTFT where goodput tells nothing."""
    seeds = [seed for seed in first.rows if seed in other.rows]
    goodput = _margin("goodput", "goodput_per_s", first, other, seeds)
    if goodput.wins and goodput.mean > TIE:
        return goodput
    ttft = _margin("mean TTFT", "ttft_s.mean", first, other, seeds)
    return ttft if abs(goodput.mean) <= TIE or ttft.wins else goodput


def whole(found: Sequence[Contest], names: Sequence[str]) -> Verdict | None:
    """The answer of the whole grid; None where it has no two candidates to choose from."""
    found = [c for c in found if len(c.candidates) > 1]
    if not found:
        return None
    if len(found) == 1:
        return found[0].verdict
    kinds = [c.verdict.kind for c in found]
    count = "both conditions" if len(found) == 2 else f"all {len(found)} conditions"
    leaders = list(dict.fromkeys(c.ranking[0].name for c in found if c.ranking))
    if all(kind == "no_answer" for kind in kinds):
        if len(leaders) == 1 and all(c.ranking for c in found):
            return Verdict("no_answer", None, f"No winner: {leaders[0]} leads in {count}, but no margin is known.", found[0].verdict.why)
        return Verdict("no_answer", None, f"No winner in {count}.", found[0].verdict.why)
    names_of = dict.fromkeys(c.name for one in found for c in one.ranking)
    everywhere = [name for name in names_of if all(name in c.best and c.verdict.kind != "no_answer" for c in found)]
    if everywhere:
        won = {name: sum(c.verdict.kind == "use" and c.verdict.policy == name for c in found) for name in everywhere}
        name = min(everywhere, key=lambda n: (-won[n], sum(c.distortion(n) for c in found), n))
        if won[name] == len(found):
            return Verdict("use", name, f"Use {name}: it wins in {count}.", _smallest(found))
        wins = f"it wins in {won[name]} of {len(found)} conditions and" if won[name] else f"in {count} it"
        return Verdict("tie", name, f"Take {name}: {wins} cannot be told apart from the best{' in the others' if won[name] else ''}.", "")
    won_by = {name: sum(c.verdict.kind == "use" and c.verdict.policy == name for c in found) for name in leaders}
    parts = [f"{name} wins in {won}" for name, won in won_by.items() if won]
    parts += [f"{kinds.count('tie')} are ties"] * ("tie" in kinds) + [f"{kinds.count('no_answer')} have no answer"] * ("no_answer" in kinds)
    return Verdict(
        "no_answer",
        None,
        f"No policy is best everywhere: of {len(found)} conditions, {', '.join(parts)}.",
        "Choose by the condition: see the table.",
    )


def _answer(ranking: Sequence[Candidate], margins: Sequence[Margin], limit: float) -> Verdict:
    limits = f"a mean distortion of {words.number(limit)} and a p99 of {words.number(TAIL * limit)}"
    if not ranking:
        return Verdict("no_answer", None, f"No winner: no candidate keeps {limits}.", "Add a finer rate, or set max_distortion.")
    first = ranking[0]
    if first.mean("good_share") < LEAST_GOOD:
        share = words.percent(first.mean("good_share"))
        return Verdict(
            "no_answer",
            None,
            f"No winner: at best {share} of the requests are within the SLO.",
            "Overloaded: lower the rate, or relax the SLO.",
        )
    if not margins:
        return Verdict("use", first.name, f"Use {first.name}: it alone keeps {limits}.", "")
    seeds = margins[0].seeds
    if seeds < 2:
        said = f"{first.name} leads ({margins[0].said()} against {ranking[1].name}), but with one seed no margin is known"
        return Verdict("no_answer", None, f"No winner: {said}.", MORE_SEEDS)
    if any(math.isnan(m.interval.low) for m in margins):
        lead = f"{first.name} leads ({margins[0].said()} against {ranking[1].name})"
        fixed = "The trace fixes the arrivals: vary the part of the trace, or take a synthetic workload."
        return Verdict("no_answer", None, f"No winner: {lead}, but all seeds give the same runs, so no margin is known.", fixed)
    tied = [c for c, m in zip(ranking[1:], margins) if not m.wins]
    if tied:
        group = [first, *tied]
        least = min(group, key=lambda c: (round(c.mean("distortion.mean"), 9), c.name))
        closest = margins[ranking.index(tied[0]) - 1].said()
        apart = f"{', '.join(c.name for c in group)} cannot be told apart here ({first.name} against {tied[0].name}: {closest})"
        return Verdict("tie", least.name, f"{apart}; take {least.name}, with the least distortion.", f"Paired over {seeds} seeds.")
    said = f"{margins[0].said()} against {ranking[1].name}, the next"
    return Verdict("use", first.name, f"Use {first.name}: {said}.", f"Paired over {seeds} seeds, 95 % interval.")


def _smallest(found: Sequence[Contest]) -> str:
    """The condition where the winner's margin is smallest, in words."""
    known = [c for c in found if c.margins]
    if not known:
        return ""
    tight = min(known, key=lambda c: abs(c.margins[0].mean))
    return f"Its smallest margin is {tight.margins[0].said()}, against {tight.ranking[1].name} at {tight.label}."


def _margin(what: str, figure: str, first: Candidate, other: Candidate, seeds: Sequence[Any]) -> Margin:
    a, b, count = first.values(figure, seeds), other.values(figure, seeds), len(seeds)
    if not count or np.isnan(a).any() or np.isnan(b).any():
        return Margin(what, math.nan, UNKNOWN, count)
    if b.mean() <= 0:
        mean = math.inf if a.mean() > 0 else 0.0
        return Margin(what, mean, Interval(mean, mean) if count > 1 else UNKNOWN, count)
    differences = (a - b) / b.mean()
    mean = float(differences.mean())
    if count < 2 or (_unchanged(first, seeds) and _unchanged(other, seeds)):
        return Margin(what, mean, UNKNOWN, count)
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, count - 1) * differences.std(ddof=1) / math.sqrt(count))
    return Margin(what, mean, Interval(mean - half, mean + half), count)


def _unchanged(one: Candidate, seeds: Sequence[Any]) -> bool:
    """Whether all seeds gave the same run, so that they say nothing about chance."""
    return all(len(set(one.values(figure, seeds))) == 1 for figure in ("goodput_per_s", "ttft_s.mean"))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _last(value: float) -> float:
    return math.inf if math.isnan(value) else value

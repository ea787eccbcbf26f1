"""The table, the figure and the report of `abkt capacity`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from experiments.capacity.answer import ranked, told_apart, words
from experiments.capacity.knee import Knee, ratio
from experiments.capacity.run import CapacityConfig, CapacityResult
from experiments.figures.style import looks
from experiments.lib.simulation import SimulateConfig
from experiments.report.page import Page, Section, Table, picture
from experiments.report.verdict import Verdict
from experiments.report.words import NOTHING, number, percent, plural

OUTSIDE = 0.01  # share of requests outside of what the profile measured that is worth a sentence
COLUMNS = ("policy", "requests/s [95 %]", "best holds more [95 %]", "distortion")
MORE = ("goodput/s", "within SLO", "p99 TTFT, s", "p99 TPOT, s", "p99 distortion", "extrapolated")  # further columns of the report


def table(result: CapacityResult, config: CapacityConfig, verdict: Verdict, ttft_s: float, wide: bool = False) -> Table:
    """One row for each policy that has a knee, the highest first. The note has the others. wide: with the columns of MORE."""
    held = ranked(result.knees)
    rows = [_row(knee, held[0], config.tolerance, wide) for knee in held]
    best = next((index for index, knee in enumerate(held) if knee.policy == verdict.policy), None)
    return Table((*COLUMNS, *(MORE if wide else ())), rows, notes(result, config.requests, ttft_s), best=best)


def _row(knee: Knee, best: Knee, tolerance: float, wide: bool) -> tuple[str, ...]:
    between = knee.interval
    apart = "" if told_apart(best, knee, tolerance) else " ?"
    names = ("ttft_s.p99", "tpot_s.p99", "distortion.p99")
    more = (
        number(knee.figure("goodput_per_s")),
        percent(knee.figure("good_share")),
        *(number(knee.figure(name)) for name in names),
        percent(knee.figure("extrapolated_share")),
    )
    return (
        knee.policy,
        f"{number(knee.rate_per_s)} [{number(max(0.0, between.low))}, {number(between.high)}]",
        NOTHING if knee is best else words(*ratio(best.rates_per_s, knee.rates_per_s)) + apart,
        number(knee.figure("distortion.mean")),
        *(more if wide else ()),
    )


def notes(result: CapacityResult, requests: int, ttft_s: float) -> str:
    """What a reader has to know: how the interval was made, and how much of it lies outside of what the profile measured."""
    said = [f"{knee.policy}: {knee.reason()}." for knee in result.knees.values() if not knee.found]
    said += ["Simulated, not validated on hardware. Intervals: Student's t over the parts of the workload; ratios are paired by part."]
    said += ["A question mark: cannot be told apart from the best."]
    if held := ranked(result.knees):
        longest_s = requests / held[-1].rate_per_s
        shortest_s = requests / held[0].rate_per_s
        said.append(
            f"At the knees a run lasts {number(shortest_s)} to {number(longest_s)} s. A queue may grow for that long before it counts, so "
            f"the rates are up to {percent(ttft_s / shortest_s)} higher than what the cluster holds for ever."
        )
    outside = {knee.policy: knee.figure("extrapolated_share") for knee in ranked(result.knees)}
    if outside and max(outside.values()) > OUTSIDE:
        least, most = min(outside.values()), max(outside.values())
        share = percent(most) if math.isclose(least, most, rel_tol=0.05) else f"{percent(least)} to {percent(most)}"
        said.append(f"At the knees, {share} of the requests lie outside of what the costs were measured on: extrapolated.")
    return " ".join(said)


def draw(result: CapacityResult, width_in: float) -> Figure:
    """Goodput by rate: the mean over the parts, and each part as a faint line. A vertical line is a policy's knee."""
    figure = Figure(figsize=(width_in, 0.55 * width_in))
    axes = figure.subplots()
    style = looks(list(result.knees), known=())  # each policy has a colour of its own
    widest = max((max(curve.rates_per_s) for curve in result.curves.values()), default=1.0)
    axes.plot([0, widest], [0, widest], color="#AAAAAA", linewidth=0.8, label="all requests")
    for policy, curve in result.curves.items():
        look, knee = style[policy], result.knees[policy].rate_per_s
        axes.plot(curve.rates_per_s, [fmean(values) for values in curve.goodput_per_s], label=policy, **look)
        for values in zip(*curve.goodput_per_s, strict=True):
            axes.plot(curve.rates_per_s, values, color=look["color"], linewidth=0.4, alpha=0.4)
        axes.axvline(knee, color=look["color"], linewidth=0.9, linestyle=":")
    axes.set_xlabel("requests/s that arrive")
    axes.set_ylabel("requests/s within the SLO")
    axes.set_xlim(0, widest)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.1)
    return figure


def page(
    config: CapacityConfig,
    simulated: SimulateConfig,
    choices: Mapping[str, str],
    result: CapacityResult,
    verdict: Verdict,
    facts: Mapping[str, str],
) -> Page:
    cluster, slo = simulated.cluster, simulated.slo
    lead = (
        f"The highest rate at which {config.goal_share:.0%} of the requests of {choices['workload']} meet the SLO "
        f"({slo.ttft_s:g} s to the first token, {slo.tpot_s:g} s for each further one), for {simulated.model.name} on "
        f"{cluster.prefill}P{cluster.decode}D of {choices['hardware']} with links of {simulated.network.gbps:g} Gbit/s. "
        f"Distortion may be {config.max_distortion:g} on average and {8 * config.max_distortion:g} at the 99th percentile."
    )
    how = (
        f"Each policy was searched on {plural(len(result.parts), 'part')} of the workload with {config.requests:,} requests each: "
        f"a bracket by doubling, then bisection until it was {config.tolerance:.0%} wide. "
        f"That took {plural(result.simulated, 'simulation')}, with those of the figure. The rate moves the arrivals closer together; "
        "lengths and order stay. The later half of a run has to meet the goal too, so that a queue that only grows does not count as "
        "capacity."
    )
    shown = [picture(lambda width: draw(result, width), "Goodput by rate of arrival for each policy")] if result.curves else []
    sections = [
        Section("The highest rate within the SLO", how, table=table(result, config, verdict, slo.ttft_s, wide=True)),
        *([Section("Goodput by rate", "Dotted: the knee. Faint: each part.", pictures=shown)] if shown else []),
        Section("Each part of the workload", table=_parts(result)),
    ]
    return Page("How much the cluster holds", lead, verdict, sections, facts)


def _parts(result: CapacityResult) -> Table:
    """The knee of every policy on every part."""
    held = ranked(result.knees)
    rows = [(str(n + 1), number(part.rate_per_s), *(number(knee.rates_per_s[n]) for knee in held)) for n, part in enumerate(result.parts)]
    return Table(("part", "own rate, requests/s", *(knee.policy for knee in held)), rows)


def plain(result: CapacityResult, verdict: Verdict, config: CapacityConfig) -> dict[str, Any]:
    """capacity.json."""
    return {
        "schema_version": 1,
        "verdict": {name: getattr(verdict, name) for name in ("kind", "policy", "sentence", "why")},
        "goal": {"share": config.goal_share, "max_distortion": config.max_distortion},
        "tolerance": config.tolerance,
        "simulations": result.simulated,
        "validated": False,
        "policies": {
            knee.policy: {
                "rate_per_s": knee.rate_per_s if knee.found else None,
                "low": knee.interval.low if knee.found else None,
                "high": knee.interval.high if knee.found else None,
                "by_part": knee.rates_per_s,
                "reason": knee.reason(),
                **{name: knee.figure(name) for name in FIGURES if knee.found},
            }
            for knee in result.knees.values()
        },
    }


FIGURES = ("goodput_per_s", "good_share", "ttft_s.p99", "tpot_s.p99", "distortion.mean", "distortion.p99", "extrapolated_share", "cost_usd")

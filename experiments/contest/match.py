"""One contest: a fixed rate sets bounds and SLO, everybody else meets them on the same requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abkt.records import SLO
from experiments.contest.rivals import Bitrate, Bounds, allocated, coarsest_within, told
from experiments.contest.scores import Score, p99, ratio
from experiments.contest.worlds import World

UNIFORM_BITS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # whole depths of the codec


@dataclass(frozen=True, slots=True)
class Match:
    """rows: policy -> figures over all repeats. against: rival -> policy -> ratio of p99 exposed transfer time, with its interval.

    ttft: policy -> ratio of mean TTFT to the bound's. missing: who could not keep the bounds, and why.
    """

    bits: float
    bounds: Bounds
    slo_ttft_s: float
    rows: dict[str, dict[str, float]]
    against: dict[str, dict[str, dict[str, float]]]
    ttft: dict[str, dict[str, float]]
    missing: dict[str, str]

    def plain(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "mean_distortion": self.bounds.mean,
            "slo_ttft_s": self.slo_ttft_s,
            "rows": self.rows,
            "exposed_p99_against": self.against,
            "ttft_mean_against_oracle": self.ttft,
            "missing": self.missing,
        }


def play(
    world: World,
    repeats: int,
    bits: float,
    ours: Mapping[str, Bitrate],
    cachegen: Bitrate,
    oracle: Bitrate,
    asked: float,
    met: float,
    slo: SLO,
) -> Match:
    """slo: its tpot_s holds; its ttft_s is what fixed rates, which look at no deadline, are run with."""

    def score(name: str, bitrate: Bitrate, under: SLO) -> Score:
        made = Score(name)
        for repeat in range(repeats):
            made.add(world(repeat, bitrate, under))
        return made

    fixed = score("fixed", allocated(bits), slo)
    bounds = Bounds(float(fixed.all_distortion.mean()))
    under = SLO(fixed.met_for(met), slo.tpot_s)
    scores, missing = {"fixed": fixed}, {}
    uniform: dict[float, Score] = {}

    def of_uniform(level: float) -> Score:
        if level not in uniform:
            uniform[level] = score("uniform", allocated(level, "uniform"), slo)
        return uniform[level]

    level = coarsest_within(bounds, UNIFORM_BITS, lambda b: of_uniform(b).all_distortion)
    if level is None:
        missing["uniform"] = "has no rate that keeps the bounds"
    else:
        scores["uniform"] = of_uniform(level)
    if within := _levels(world, repeats, cachegen, bounds, under):
        scores["cachegen"] = within
    else:
        missing["cachegen"] = "breaks the bounds even with its finest level alone"
    for name, bitrate in ours.items():
        scores[name] = score(name, told(bitrate, bounds, asked), under)
    scores["oracle"] = score("oracle", told(oracle, bounds, asked), under)
    for name, made in scores.items():
        if name != "fixed" and not bounds.held_by(made.all_distortion):
            missing[name] = f"breaks the bounds: mean {made.all_distortion.mean():.4f}, p99 {p99(made.all_distortion):.4f}"
    against = {
        rival: {name: ratio(scores[name].exposed_s, scores[rival].exposed_s, p99) for name in scores if name != rival}
        for rival in ("fixed", "uniform", "cachegen")
        if rival in scores
    }
    ttft = {name: ratio(scores[name].ttft_s, scores["oracle"].ttft_s, lambda values: float(values.mean())) for name in ours}
    rows = {name: made.row(under.ttft_s) for name, made in scores.items()}
    return Match(bits, bounds, under.ttft_s, rows, against, ttft, missing)


def _levels(world: World, repeats: int, cachegen: Bitrate, bounds: Bounds, slo: SLO) -> Score | None:
    """CacheGen with all the levels that keep the bounds: its own, and those between, less the coarsest as long as they break them."""
    levels = sorted(UNIFORM_BITS, reverse=True)
    while levels:
        made = Score("cachegen")
        for repeat in range(repeats):
            made.add(world(repeat, {**cachegen, "bits": [int(level) for level in levels]}, slo))
        if bounds.held_by(made.all_distortion):
            return made
        levels.pop()
    return None

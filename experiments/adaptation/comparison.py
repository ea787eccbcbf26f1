"""One comparison: a fixed rate sets the bounds and the SLO, and the other policies run the same requests within them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from abkt.records import SLO
from experiments.adaptation.rivals import Aim, Bitrate, Bounds, allocated, coarsest_within, finest_levels_within, largest_aim, with_bounds
from experiments.adaptation.scores import Score, mean, p99, ratio, worst
from experiments.adaptation.winner import Winner, winner
from experiments.adaptation.worlds import World

UNIFORM_BITS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # the codec's depths in bits


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of one comparison.

    Parameters
    ----------
    bits : mean bits per value of the fixed rate.
    bounds : bounds of token-weighted distortion, set by the distortion that the fixed rate leaves.
    slo_ttft_s : TTFT limit in seconds that the fixed rate keeps for the given share of the requests.
    rows : policy -> figures over all repeats.
    against : rival -> policy -> ratio of p99 exposed transfer time, with its 95 % interval.
    ttft : policy -> ratio of its mean TTFT to that of the oracle.
    even : policy -> ratios to the first of ours, after the policy's aim was lowered until its mean distortion is no larger.
    missing : policy -> why it did not keep the bounds.
    winner : the policy with the lowest mean TTFT of those that keep the bounds, without the oracle; None if there is none.
    """

    bits: float
    bounds: Bounds
    slo_ttft_s: float
    rows: dict[str, dict[str, float]]
    against: dict[str, dict[str, dict[str, float]]]
    ttft: dict[str, dict[str, float]]
    even: dict[str, dict[str, dict[str, float]]]
    missing: dict[str, str]
    winner: Winner | None

    def plain(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "mean_distortion": self.bounds.mean,
            "slo_ttft_s": self.slo_ttft_s,
            "rows": self.rows,
            "exposed_p99_against": self.against,
            "ttft_mean_against_oracle": self.ttft,
            "even_against_first": self.even,
            "missing": self.missing,
            "winner": self.winner.plain() if self.winner else None,
        }


def compare_within_bounds(
    world: World,
    repeats: int,
    bits: float,
    ours: Mapping[str, Bitrate],
    cachegen: Bitrate,
    oracle: Bitrate,
    aim: Aim,
    slo_share: float,
    slo: SLO,
    scout: World | None = None,
) -> Comparison:
    """Compare our policies with fixed rates, CacheGen and an oracle on the same requests, within the same bounds of distortion.

    Parameters
    ----------
    world : runs one repeat with a policy and returns its records.
    repeats : number of repeats.
    bits : mean bits per value of the fixed rate.
    ours, cachegen, oracle : policies as abkt.policy.build takes them.
    aim : what distortion our policies aim for.
    slo_share : share of requests for which the fixed rate keeps the SLO.
    slo : its tpot_s is the TPOT limit; its ttft_s is given to fixed rates, which ignore it.
    scout : faster world in which levels that keep the bounds are searched, if trying them all in `world` would take too long.
    """

    def score(name: str, bitrate: Bitrate, under: SLO, of: World = world) -> Score:
        made = Score(name)
        for repeat in range(repeats):
            made.add(of(repeat, bitrate, under))
        return made

    fixed = score("fixed", allocated(bits), slo)
    bounds = Bounds(float(fixed.all_distortion.mean()))
    under = SLO(fixed.met_for(slo_share), slo.tpot_s)
    scores: dict[str, Score] = {"fixed": fixed}
    missing: dict[str, str] = {}
    scouts = scout or world
    level = coarsest_within(bounds, UNIFORM_BITS, lambda b: score("uniform", allocated(b, "uniform"), slo, scouts).all_distortion.tolist())
    if level is None:
        missing["uniform"] = "has no rate that keeps the bounds"
    else:
        scores["uniform"] = score("uniform", allocated(level, "uniform"), slo)
    levels = finest_levels_within(
        bounds, UNIFORM_BITS, lambda bits: score("cachegen", {**cachegen, "bits": bits}, under, scouts).all_distortion.tolist()
    )
    if levels:
        scores["cachegen"] = score("cachegen", {**cachegen, "bits": levels}, under)
    else:
        missing["cachegen"] = "breaks the bounds even with its finest level alone"
    for name, bitrate in ours.items():
        scores[name] = score(name, with_bounds(bitrate, bounds, aim), under)
    first, *others = ours
    for name in others:
        target = _even(ours[first], ours[name], bounds, aim, lambda bitrate: score("", bitrate, under, scouts))
        if target is None:
            missing[_evened(name)] = f"has more distortion than {first}, even if it aims for a quarter of it"
        else:
            scores[_evened(name)] = score(name, with_bounds(ours[name], bounds, replace(aim, target=target)), under)
    scores["oracle"] = score("oracle", with_bounds(oracle, bounds, aim), under)
    for name, made in scores.items():
        if name != "fixed" and not bounds.held_by(made.all_distortion.tolist()):
            missing[name] = f"breaks the bounds: mean {made.all_distortion.mean():.4f}, p99 {p99(made.all_distortion):.4f}"
    against: dict[str, dict[str, dict[str, float]]] = {
        rival: {name: ratio(scores[name].exposed_s, scores[rival].exposed_s, p99) for name in scores if name != rival}
        for rival in ("fixed", "uniform", "cachegen")
        if rival in scores
    }
    ttft = {name: ratio(scores[name].ttft_s, scores["oracle"].ttft_s, mean) for name in ours}
    even = {name: _against(scores[name], scores[first]) for name in map(_evened, others) if name in scores}
    rows = {name: made.row(under.ttft_s) for name, made in scores.items()}
    best = winner(scores, {"oracle", *missing, *even})
    return Comparison(bits, bounds, under.ttft_s, rows, against, ttft, even, missing, best)


def _evened(name: str) -> str:
    return f"{name}, even"


def _even(first: Bitrate, other: Bitrate, bounds: Bounds, aim: Aim, scout: Callable[[Bitrate], Score]) -> float | None:
    """The distortion, in D, that `other` must aim for to have no more distortion than `first`."""

    def distortion(of: Bitrate, target: float) -> float:
        return float(scout(with_bounds(of, bounds, replace(aim, target=target))).all_distortion.mean())

    return largest_aim(distortion(first, aim.target), aim.target, lambda target: distortion(other, target))


def _against(ours: Score, theirs: Score) -> dict[str, dict[str, float]]:
    return {
        "ttft_mean": ratio(ours.ttft_s, theirs.ttft_s, mean),
        "ttft_p99": ratio(ours.ttft_s, theirs.ttft_s, p99),
        "ttft_worst": ratio(ours.ttft_s, theirs.ttft_s, worst),
        "distortion_mean": ratio(ours.distortion, theirs.distortion, mean),
    }

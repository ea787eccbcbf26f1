"""One comparison: a fixed rate sets the bounds of distortion, and the other policies run the same requests within them.

The rows, in this order:

* rivals that do not follow the link: `fixed` (the same mean bits, our allocation), `uniform`, `equal` and `equal, refined` (the same
  distortion, chosen in hindsight as the largest within the bounds), and `spend` (each as coarse as the budget of ours allows, refined);
* rivals that do: `cachegen` with every level that the bounds allow, `cachegen, told D` with the budget of ours, and `cachegen, our stream`
  with our order of bands and our refinement too;
* ours, as they ship;
* the first of ours without one of its parts: the same bits for all requests, no refinement, one coder, or blind to the link;
* `oracle`: the link known for all time, every coder, and the better of the budget of ours and of the best aim in hindsight; and the limit:
  every request at 8 D over a known link. The limit does not keep the bound of the mean, and nothing that starts within 8 D can be faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from abkt.ranges import OutOfRange
from abkt.records import SLO
from experiments.adaptation import rivals
from experiments.adaptation.outcome import Margin, Pair, pair
from experiments.adaptation.rivals import Aim, Bitrate, Bounds, coded, one_coder_each, with_bounds
from experiments.adaptation.runs import Runs
from experiments.adaptation.scores import Score, mean, p99, ratio, worst
from experiments.adaptation.winner import Winner, winner
from experiments.adaptation.worlds import World

UNIFORM_BITS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # the codec's depths in bits
RIVALS = ("fixed", "uniform", "equal", "equal, refined", "spend", "cachegen", "cachegen, told D", "cachegen, our stream")
ORACLE, LIMIT = "oracle", "limit"
EMBEDDED = "abkt.policy.bitrate.embedded.Embedded"


@dataclass(frozen=True, slots=True)
class Contest:
    """What is fixed before a comparison runs.

    Parameters
    ----------
    slo : limits of TTFT and TPOT, in seconds.
    ours : policies that take bounds of distortion, by name; the first is taken apart.
    cachegen, oracle : policies as abkt.policy.build takes them.
    aim : what distortion our policies aim for.
    coders : the coders that every policy may use.
    margin : differences that are too small to matter.
    repeats : number of repeats.
    parts : whether the first of ours also runs without each of its parts.
    rows : names of the rows to run besides `fixed` and the parts; empty: all.

    Raises
    ------
    ValueError : if there is no such row.
    """

    slo: SLO
    ours: Mapping[str, Bitrate]
    cachegen: Bitrate
    oracle: Bitrate
    aim: Aim
    coders: Sequence[str] = rivals.SHIPPED_CODERS[:2]
    margin: Margin = field(default_factory=Margin)
    repeats: int = 5
    parts: bool = True
    rows: Sequence[str] = ()

    def __post_init__(self) -> None:
        known = [*RIVALS, *self.ours, *(f"{name}, even" for name in list(self.ours)[1:]), ORACLE, LIMIT]
        if wrong := [name for name in self.rows if name not in known]:
            raise OutOfRange(f"rows has {wrong[0]!r}; the rows are {'; '.join(known)}")


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of one comparison.

    Parameters
    ----------
    bits : mean bits per value of the fixed rate.
    bounds : bounds of token-weighted distortion, set by the distortion that the fixed rate leaves.
    slo_ttft_s : TTFT limit in seconds.
    rows : policy -> figures over all repeats.
    settings : policy -> how it was set: a coder, levels or an aim that was chosen for it.
    against : policy of ours -> other policy -> the pair.
    even : policy -> ratios to the first of ours, after the policy's aim was lowered until its mean distortion is no larger.
    missing : policy -> why it did not keep the bounds.
    winner : the best policy that keeps the bounds, without the oracle, the limit and the parts; None if there is none.
    """

    bits: float
    bounds: Bounds
    slo_ttft_s: float
    rows: dict[str, dict[str, float]]
    settings: dict[str, str]
    against: dict[str, dict[str, Pair]]
    even: dict[str, dict[str, dict[str, float]]]
    missing: dict[str, str]
    winner: Winner | None

    def plain(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "mean_distortion": self.bounds.mean,
            "slo_ttft_s": self.slo_ttft_s,
            "rows": self.rows,
            "settings": self.settings,
            "against": {name: {other: asdict(made) for other, made in pairs.items()} for name, pairs in self.against.items()},
            "even_against_first": self.even,
            "missing": self.missing,
            "winner": self.winner.plain() if self.winner else None,
        }


def compare_within_bounds(world: World, contest: Contest, bits: float, scout: World | None = None) -> Comparison:
    """Compare our policies with their rivals on the same requests, within the bounds of distortion that a fixed rate sets.

    Parameters
    ----------
    world : runs one repeat with a policy and returns its records.
    contest : what is fixed beforehand.
    bits : mean bits per value of the fixed rate.
    scout : faster world in which the settings of the rivals are searched, if trying them all in `world` would take too long.
    """
    run, slo_s = Runs(world, contest.slo, contest.repeats), contest.slo.ttft_s
    scouted = Runs(scout, contest.slo, contest.repeats) if scout is not None and scout is not world else run
    fixed = scouted.best(one_coder_each(rivals.allocated(bits), rivals.with_bits(contest.coders)))
    bounds = Bounds(float(run.score("fixed", fixed).all_distortion.mean()))
    entrants: dict[str, Bitrate] = {"fixed": fixed}
    missing: dict[str, str] = {}
    settings: dict[str, str] = {}
    _add_rivals(entrants, settings, missing, contest, bounds, scouted)
    entrants |= {
        name: rivals.as_shipped(with_bounds(bitrate, bounds, contest.aim), contest.coders) for name, bitrate in contest.ours.items()
    }
    first = next(iter(contest.ours))
    evened = _add_even(entrants, missing, contest, bounds, scouted)
    parts = _parts(first, bits, contest, bounds, scouted) if contest.parts else {}
    entrants |= parts
    entrants[ORACLE] = scouted.best(_oracles(contest, bounds, scouted))
    entrants[LIMIT] = scouted.best(_limits(contest, bounds))
    wanted = {"fixed", *parts, *(contest.rows or entrants)}
    scores = {name: run.score(name, bitrate) for name, bitrate in entrants.items() if name in wanted}
    evened = [name for name in evened if name in scores]
    for name, made in scores.items():
        if name not in ("fixed", LIMIT) and not bounds.held_by(made.all_distortion.tolist()):
            missing[name] = f"breaks the bounds: mean {made.all_distortion.mean():.4f}, p99 {p99(made.all_distortion):.4f}"
    settings = {name: ", ".join(filter(None, (settings.get(name, ""), _coders(entrants[name])))) for name in scores}
    compared = {name: made for name, made in scores.items() if name not in evened}
    against = {
        name: {other: pair(scores[name], made, slo_s, contest.margin) for other, made in compared.items() if other != name}
        for name in contest.ours
        if name in scores
    }
    even = {name: _against(scores[name], scores[first]) for name in evened if first in scores}
    rows = {name: made.row(slo_s) for name, made in scores.items()}
    best = winner(scores, {ORACLE, LIMIT, *missing, *evened, *parts}, slo_s, contest.margin)
    return Comparison(bits, bounds, slo_s, rows, settings, against, even, missing, best)


def _add_rivals(
    entrants: dict[str, Bitrate], settings: dict[str, str], missing: dict[str, str], contest: Contest, bounds: Bounds, scouted: Runs
) -> None:
    """Add each rival with the coarsest setting that the bounds allow and with the coder that serves it best."""
    aim, coders, cachegen = contest.aim, contest.coders, contest.cachegen
    level = rivals.coarsest_within(
        bounds, UNIFORM_BITS, lambda bits: scouted.distortion(coded(rivals.allocated(bits, "uniform"), coders[:1]))
    )
    if level is None:
        missing["uniform"] = "has no rate that keeps the bounds"
    else:
        entrants["uniform"] = scouted.best(one_coder_each(rivals.allocated(level, "uniform"), rivals.with_bits(coders)))
        settings["uniform"] = f"{level:g} bits"
    for name, refine in (("equal", math.inf), ("equal, refined", aim.refine * bounds.mean)):
        aims = _largest_aims(refine, coders, bounds, scouted)
        if not aims:
            missing[name] = "breaks the bounds even if it aims for D"
            continue
        entrants[name] = scouted.best([coded(rivals.equal(most, refine), [coder]) for coder, most in aims.items()])
        settings[name] = f"aims for {aims[entrants[name]['coders'][0]] / bounds.mean:.2f} D"
    spend = rivals.bounded(rivals.allocated(0.0), bounds, replace(aim, target=1.0), "slope", refine=True)
    entrants["spend"] = scouted.best(one_coder_each(spend, coders))
    levels = rivals.finest_levels_within(bounds, UNIFORM_BITS, lambda bits: scouted.distortion(coded({**cachegen, "bits": bits}, coders)))
    if levels:
        told = {**cachegen, "bits": levels}
        entrants["cachegen"] = scouted.best([coded(told, coders), *one_coder_each(told, coders)])
        settings["cachegen"] = f"{', '.join(map(str, levels))} bits"
    else:
        missing["cachegen"] = "breaks the bounds even with its finest level alone"
    every_level = {**cachegen, "bits": [int(level) for level in sorted(UNIFORM_BITS, reverse=True)]}
    for name, made in (
        ("cachegen, told D", rivals.bounded(every_level, bounds, aim)),
        ("cachegen, our stream", rivals.bounded(every_level, bounds, aim, "slope", refine=True)),
    ):
        entrants[name] = scouted.best([coded(made, coders), *one_coder_each(made, coders)])


def _largest_aims(refine: float, coders: Sequence[str], bounds: Bounds, scouted: Runs) -> dict[str, float]:
    """Coder -> the largest distortion that `equal` may aim for with it. The coder changes how much is refined in time."""
    found = {
        coder: rivals.largest_within(bounds, lambda most, c=coder: scouted.distortion(coded(rivals.equal(most, refine), [c])))  # type: ignore[misc]
        for coder in coders
    }
    return {coder: most for coder, most in found.items() if most is not None}


def _add_even(entrants: dict[str, Bitrate], missing: dict[str, str], contest: Contest, bounds: Bounds, scouted: Runs) -> list[str]:
    """Add the others of ours with an aim at which they have no more distortion than the first; returns the names of these entrants."""
    (first, of_first), *others = contest.ours.items()
    added = []

    def made(bitrate: Bitrate, target: float) -> Bitrate:
        return rivals.as_shipped(with_bounds(bitrate, bounds, replace(contest.aim, target=target)), contest.coders)

    def distortion(bitrate: Bitrate, target: float) -> float:
        return float(scouted.score("", made(bitrate, target)).all_distortion.mean())

    for name, bitrate in others:
        most = contest.aim.target
        target = rivals.largest_aim(distortion(of_first, most), most, lambda target, of=bitrate: distortion(of, target))  # type: ignore[misc]
        if target is None:
            missing[f"{name}, even"] = f"has more distortion than {first}, even if it aims for a quarter of it"
        else:
            entrants[f"{name}, even"] = made(bitrate, target)
            added.append(f"{name}, even")
    return added


def _parts(first: str, bits: float, contest: Contest, bounds: Bounds, scouted: Runs) -> dict[str, Bitrate]:
    """The first of ours without one of its parts at a time."""
    aim, coders, ours = contest.aim, contest.coders, contest.ours[first]
    whole = with_bounds(ours, bounds, aim)
    made = {}
    if ours["_target_"] == EMBEDDED:
        made[f"{first}, equal bits"] = rivals.as_shipped({**whole, "_target_": f"{EMBEDDED}Bits", "bits": bits}, coders)
    if "refine_distortion" in ours:
        made[f"{first}, no refinement"] = rivals.as_shipped({**whole, "refine_distortion": math.inf}, coders)
    made[f"{first}, {coders[0]} coder alone"] = coded(whole, coders[:1])
    blind = rivals.equal(aim.target * bounds.mean, aim.refine * bounds.mean)
    made[f"{first}, blind to the link"] = scouted.best(one_coder_each(blind, coders))
    return made


def _oracles(contest: Contest, bounds: Bounds, scouted: Runs) -> list[Bitrate]:
    """The policies of which the best is the oracle: one with the budget of ours, and one that aims for the most that the bounds allow."""
    link, most = contest.oracle.get("link"), bounds.p99
    told = with_bounds(contest.oracle, bounds, contest.aim)

    def aiming(distortion: float) -> Bitrate:
        limits = {"target_distortion": distortion, "mean_distortion": most, "max_distortion": most}
        return coded({**told, **limits}, contest.coders, link)

    found = rivals.largest_within(bounds, lambda distortion: scouted.distortion(aiming(distortion)))
    return [coded(told, contest.coders, link), *([aiming(found)] if found is not None else [])]


def _limits(contest: Contest, bounds: Bounds) -> list[Bitrate]:
    """The policies of which the best is the limit."""
    link = contest.oracle.get("link")
    all_at_most = with_bounds(contest.oracle, Bounds(bounds.p99), Aim(1.0, math.inf)) | {"max_distortion": bounds.p99}
    return [coded(all_at_most, coders, link) for coders in (contest.coders, *([coder] for coder in contest.coders))]


def _coders(bitrate: Bitrate) -> str:
    """The coders of an entrant, in words; empty for a policy that was left as it ships."""
    return " or ".join(bitrate["coders"]) if "coders" in bitrate else ""


def _against(ours: Score, theirs: Score) -> dict[str, dict[str, float]]:
    made = {"ttft_mean": ratio(ours.ttft_s, theirs.ttft_s, mean), "ttft_worst": ratio(ours.ttft_s, theirs.ttft_s, worst)}
    if ours.has_p99:
        made["ttft_p99"] = ratio(ours.ttft_s, theirs.ttft_s, p99)
    return {**made, "distortion_mean": ratio(ours.distortion, theirs.distortion, mean)}

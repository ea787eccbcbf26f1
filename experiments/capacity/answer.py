"""The answer of `abkt capacity`: which policy holds most, by how much, or that it cannot be told."""

from __future__ import annotations

import math
from collections.abc import Mapping

from experiments.capacity.knee import Knee, ratio
from experiments.lib.intervals import Interval
from experiments.report.verdict import Verdict
from experiments.report.words import number

SHORTEST = 5.0  # a run lasts at least this many TTFT limits, or its queue has no time to grow


def answer(knees: Mapping[str, Knee], tolerance: float, requests: int, ttft_s: float) -> Verdict:
    """The verdict over all policies.

    Parameters
    ----------
    knees : policy -> its knee.
    tolerance : relative width of the bisection; smaller differences are not claimed.
    requests : of each run.
    ttft_s : the SLO's limit.

    Two policies are told apart if the 95 % interval of their ratio, paired over the parts of the workload, leaves out 0 and the ratio is
    larger than the tolerance. Of policies that cannot be told apart from the best, the one with the least distortion is to be taken.
    """
    unlimited = [knee.policy for knee in knees.values() if not knee.found and not any(rate == 0 for rate in knee.rates_per_s)]
    if unlimited:
        return Verdict(
            "no_answer",
            None,
            f"No answer: {' and '.join(unlimited)} met the goal at every rate tried; give longer runs (requests=) or a stricter slo.",
            "The runs never reached the knee.",
        )
    held = ranked(knees)
    if not held:
        one = next(iter(knees.values()))
        return Verdict(
            "no_answer",
            None,
            f"No answer: no policy meets the goal at any rate ({one.policy}: {one.reason()}).",
            "The goal is out of reach: give a looser slo, a lower goal_share, a higher max_distortion, or a larger cluster.",
        )
    best, *others = held
    if requests / best.rate_per_s < SHORTEST * ttft_s:
        needed = math.ceil(SHORTEST * ttft_s * best.rate_per_s / 100) * 100
        return Verdict(
            "no_answer",
            None,
            f"No answer: at the knee of {best.policy} all requests of a run arrive within {requests / best.rate_per_s:.3g} s, which is too "
            f"short for a queue to grow beyond {ttft_s:g} s; give requests={needed} or a stricter slo.",
            "The runs are too short.",
        )
    if not others:
        return Verdict("use", best.policy, f"Use {best.policy}: it alone meets the goal, up to {number(best.rate_per_s)} requests/s.", "")
    ties = [knee for knee in others if not told_apart(best, knee, tolerance)]
    if ties:
        pick = min((best, *ties), key=lambda knee: knee.figure("distortion.mean"))
        names = ", ".join(knee.policy for knee in (best, *ties[:-1])) + f" and {ties[-1].policy}"
        margin = words(*ratio(best.rates_per_s, ties[-1].rates_per_s))
        return Verdict(
            "tie",
            pick.policy,
            f"{names} cannot be told apart ({best.policy} holds {margin} more than {ties[-1].policy}): take {pick.policy}, "
            f"which has the least distortion of them ({number(pick.figure('distortion.mean'))}).",
            "The interval of their ratio holds 0, or the ratio is within the tolerance of the bisection.",
        )
    second = others[0]
    margin = words(*ratio(best.rates_per_s, second.rates_per_s))
    return Verdict(
        "use",
        best.policy,
        f"Use {best.policy}: it holds {margin} more requests/s than the next, {second.policy} "
        f"({number(best.rate_per_s)} against {number(second.rate_per_s)}).",
        "",
    )


def ranked(knees: Mapping[str, Knee]) -> list[Knee]:
    """The policies that have a knee, the highest first."""
    return sorted((knee for knee in knees.values() if knee.found), key=lambda knee: -knee.rate_per_s)


def told_apart(best: Knee, other: Knee, tolerance: float) -> bool:
    more, interval = ratio(best.rates_per_s, other.rates_per_s)
    return interval.low > 0 and more > tolerance


def words(more: float, interval: Interval) -> str:
    """A ratio and its interval, such as 12 % [9, 15]."""
    return f"{number(more * 100)} % [{number(interval.low * 100)}, {number(interval.high * 100)}]"

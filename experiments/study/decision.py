"""The verdict of a study: whether the measured runs tell the policies apart, and which one to use.

A policy beats another if more of its requests are within the SLO, or, where that cannot be told, if its mean TTFT is lower; both only where
the 95 % interval of the difference leaves out zero, and the difference is at least 1 %. Only policies that keep the distortion limits take
part.

What is independent: a *repeat* (one run of every policy over the same requests), because the requests of a run share a queue, a link and
the state of the machine. So one interval is Student's t over the paired differences of the repeats, which covers the machine's noise.
Another is a paired block bootstrap over the requests, each averaged over the repeats, which covers the choice of requests. An interval here
spans both. They are of one pair each and are not corrected for the number of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.lib import intervals
from experiments.lib.intervals import Floats, Interval
from experiments.report.verdict import Verdict
from experiments.report.words import number, percent, seconds
from experiments.study.load import MOST
from experiments.study.ranking import TAIL, TIE

FEWEST_GOOD = 10  # requests within the SLO, over all repeats, that the best policy must have
LEAST_SHARE = 0.2  # share of its requests that the best policy must have within the SLO
DRIFTED = 1.2  # measured over planned time of computing above which the machine is no longer the one that was profiled
WIDE_SHARE, WIDE_TTFT = 0.1, 0.15  # half widths of intervals above which a difference that matters could hide


@dataclass(frozen=True, slots=True)
class Measured:
    """One policy's real runs. good: [repeats, requests], whether a request was within the SLO. ttft_s: the same; nan if not completed."""

    policy: str
    good: Floats
    ttft_s: Floats
    distortion_mean: float
    distortion_p99: float

    @property
    def share(self) -> float:
        return float(self.good.mean())

    @property
    def ttft_mean_s(self) -> float:
        return float(np.nanmean(self.ttft_s)) if not np.isnan(self.ttft_s).all() else math.nan


@dataclass(frozen=True, slots=True)
class Difference:
    """An estimate and its 95 % interval."""

    estimate: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def above(self, least: float) -> bool:
        return self.low > 0 and self.estimate >= least

    def below(self, least: float) -> bool:
        return self.high < 0 and self.estimate <= -least


@dataclass(frozen=True, slots=True)
class Pair:
    """Policy a against policy b. share: more of a's requests within the SLO, as a share of all. ttft: mean TTFT of a / that of b - 1."""

    a: str
    b: str
    share: Difference
    ttft: Difference

    @property
    def winner(self) -> str:
        """The policy that beats the other; empty where they cannot be told apart."""
        if self.share.above(TIE) or (not self.share.below(TIE) and self.ttft.below(TIE)):
            return self.a
        if self.share.below(TIE) or self.ttft.above(TIE):
            return self.b
        return ""

    @property
    def by_share(self) -> bool:
        return self.share.above(TIE) or self.share.below(TIE)


@dataclass(frozen=True, slots=True)
class Decision:
    """verdict: the answer. pairs: every pair of policies that keep the limits. best: the policies that no other beats. refused: policy ->
    why it does not take part."""

    verdict: Verdict
    pairs: tuple[Pair, ...]
    best: tuple[str, ...]
    refused: Mapping[str, str]


def decide(measured: Sequence[Measured], max_distortion: float, busy: Mapping[str, float], slower: float = 1.0) -> Decision:
    """The verdict.

    Parameters
    ----------
    measured : the runs of each policy, over the same requests and as many repeats.
    max_distortion : D; a policy keeps its mean distortion within D and its p99 within 8 D.
    busy : measured utilisation of each worker under the policy that needs least.
    slower : how many times as long as planned the machine computed.
    """
    refused = {m.policy: why for m in measured if (why := _refused(m, max_distortion))}
    rivals = [m for m in measured if m.policy not in refused]
    pairs = tuple(compare_pair(a, b) for i, a in enumerate(rivals) for b in rivals[i + 1 :])
    beaten = {p.b if p.winner == p.a else p.a for p in pairs if p.winner}
    best = [m for m in rivals if m.policy not in beaten] or rivals  # a cycle of three leaves nobody: then all are tied
    verdict = _no_answer(rivals, pairs, max_distortion, busy, slower) or _answer(rivals, best, pairs, max_distortion)
    return Decision(verdict, pairs, tuple(m.policy for m in best), refused)


def compare_pair(a: Measured, b: Measured) -> Pair:
    requests = a.good.shape[1]
    places = intervals.paired_draws(requests)
    differences = a.good.mean(1) - b.good.mean(1)
    over_requests = intervals.difference(b.good.mean(0), a.good.mean(0), np.nanmean, places)
    # one run cannot know a share better than half a request
    share = _difference(float(differences.mean()), student(differences, least_deviation=0.5 / requests), over_requests)
    both = ~(np.isnan(a.ttft_s) | np.isnan(b.ttft_s))
    left, right = np.where(both, a.ttft_s, np.nan), np.where(both, b.ttft_s, np.nan)
    if not both.any(1).all():
        return Pair(a.policy, b.policy, share, Difference(math.nan, -math.inf, math.inf))
    logs = np.log(np.nanmean(left, 1) / np.nanmean(right, 1))
    over_repeats = student(logs)
    known = both.any(0)
    over_requests = intervals.relative(
        np.nanmean(right[:, known], 0), np.nanmean(left[:, known], 0), np.nanmean, intervals.paired_draws(int(known.sum()))
    )
    ttft = _difference(
        math.expm1(float(logs.mean())), Interval(math.expm1(over_repeats.low), math.expm1(min(over_repeats.high, 20.0))), over_requests
    )
    return Pair(a.policy, b.policy, share, ttft)


def student(values: Floats, least_deviation: float = 0.0) -> Interval:
    """Student's 95 % interval of the mean of independent values; unlimited with one value. The deviation is at least least_deviation."""
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return Interval(-math.inf, math.inf)
    half = float(t.ppf(0.975, count - 1)) * max(float(values.std(ddof=1)), least_deviation) / math.sqrt(count)
    return Interval(float(values.mean()) - half, float(values.mean()) + half)


def _difference(estimate: float, *found: Interval) -> Difference:
    known = [i for i in found if not math.isnan(i.low)]
    return Difference(estimate, min(i.low for i in known), max(i.high for i in known))


def _refused(m: Measured, limit: float) -> str:
    if math.isnan(m.distortion_mean) or math.isnan(m.ttft_mean_s):
        return "no request completed"
    if m.distortion_mean > limit:
        return f"mean distortion {number(m.distortion_mean)} is above {number(limit)}"
    if m.distortion_p99 > TAIL * limit:
        return f"p99 distortion {number(m.distortion_p99)} is above {number(TAIL * limit)}"
    return ""


def _no_answer(rivals: Sequence[Measured], pairs: Sequence[Pair], limit: float, busy: Mapping[str, float], slower: float) -> Verdict | None:
    worker, most = max(busy.items(), key=lambda item: item[1])
    if most > MOST:
        return _none(
            "overloaded",
            f"the {worker} worker had work for {percent(round(most, 2))} of the time, so every policy waited in its queue; "
            + (
                f"computing took {slower:.1f} times as long as when the machine was profiled, so end other work on it and try again"
                if slower > DRIFTED
                else "run it with a smaller load, such as load=0.4"
            ),
        )
    if not rivals:
        return _none(
            "no policy keeps the distortion limit",
            f"a mean of {number(limit)} and a p99 of {number(TAIL * limit)}; raise max_distortion, or add a policy with more bits",
        )
    top = max(rivals, key=lambda m: m.share)
    good, total = int(top.good.sum()), top.good.size
    if good < FEWEST_GOOD or top.share < LEAST_SHARE:
        return _none(
            "too few good requests",
            f"the best policy, {top.policy}, kept the SLO for {good} of {total} requests; "
            "take a longer slo.ttft_s, a faster network.gbps or more minutes",
        )
    wide = [p for p in pairs if p.share.half_width > WIDE_SHARE or not p.ttft.half_width <= WIDE_TTFT]
    if pairs and len(wide) == len(pairs) and not any(p.winner for p in pairs):
        return _none(
            "the machine was too noisy",
            "the repeats differ by more than the policies do; end other work on this machine, or give more time, such as minutes=10",
        )
    return None


def _none(why: str, more: str) -> Verdict:
    return Verdict("no_answer", None, f"No answer ({why}): {more}.", why)


def _answer(rivals: Sequence[Measured], best: Sequence[Measured], pairs: Sequence[Pair], limit: float) -> Verdict:
    scope = (
        f"95 % intervals over {best[0].good.shape[0]} repeats of {best[0].good.shape[1]} requests; "
        f"policies with a mean distortion above {number(limit)} take no part"
    )
    if len(best) == 1:
        first, rest = best[0], [m for m in rivals if m is not best[0]]
        if not rest:
            return Verdict("use", first.policy, f"Use {first.policy}: it alone keeps the distortion limits.", scope)
        second = max(rest, key=_standing)
        return Verdict("use", first.policy, f"Use {first.policy}: {_margin(first, second, pairs)}.", scope)
    take = min(best, key=lambda m: (m.distortion_mean, m.ttft_mean_s))
    other = max((m for m in best if m is not take), key=_standing)
    names = [m.policy for m in sorted(best, key=_standing, reverse=True)]
    more = "" if all(m.distortion_mean > take.distortion_mean for m in best if m is not take) else " no more than the others"
    least = f"which distorts the KV {'least' if len(best) > 2 else 'less'}" if not more else f"which distorts the KV{more}"
    figures = f"{number(take.distortion_mean)}, against {number(other.distortion_mean)} with {other.policy}"
    sentence = (
        f"{', '.join(names[:-1])} and {names[-1]} cannot be told apart here ({_apart(take, other, pairs)}): "
        f"take {take.policy}, {least} ({figures})."
    )
    return Verdict("tie", take.policy, sentence, scope)


def _standing(m: Measured) -> tuple[float, float]:
    """Shares within 1 % of each other count as equal; then the lower mean TTFT is better."""
    return round(m.share / TIE) * TIE, -m.ttft_mean_s


def between(a: str, b: str, pairs: Sequence[Pair]) -> Pair:
    """The pair of two policies, seen from a."""
    pair = next(p for p in pairs if {p.a, p.b} == {a, b})
    if pair.a == a:
        return pair
    share = Difference(-pair.share.estimate, -pair.share.high, -pair.share.low)
    e, low, high = (1 / (1 + x) - 1 if x > -1 else math.inf for x in (pair.ttft.estimate, pair.ttft.high, pair.ttft.low))
    return Pair(a, b, share, Difference(e, low, high))


def _margin(first: Measured, second: Measured, pairs: Sequence[Pair]) -> str:
    pair = between(first.policy, second.policy, pairs)
    if pair.by_share:
        return (
            f"{percent(round(first.share, 2))} of its requests are within the SLO, {_points(pair.share)} more than with {second.policy}, "
            "the next best"
        )
    return (
        f"its mean TTFT is {seconds(first.ttft_mean_s)}, {_less(pair.ttft)} than that of {second.policy}, the next best, "
        f"with {percent(round(first.share, 2))} against {percent(round(second.share, 2))} of the requests within the SLO"
    )


def _apart(take: Measured, other: Measured, pairs: Sequence[Pair]) -> str:
    pair = between(take.policy, other.policy, pairs)
    low, high = (round(x * 100) for x in (pair.ttft.low, pair.ttft.high))
    text = (
        f"{take.policy} against {other.policy}: {percent(round(take.share, 2))} and {percent(round(other.share, 2))} of the requests "
        f"within the SLO, mean TTFT {pair.ttft.estimate * 100:+.0f} % [{low:+d}, {high:+d}]"
    )
    return text.replace("-", "\N{MINUS SIGN}")


def _points(share: Difference) -> str:
    return f"{share.estimate * 100:.0f} points [{share.low * 100:.0f}, {share.high * 100:.0f}]".replace("-", "\N{MINUS SIGN}")


def _less(ttft: Difference) -> str:
    return f"{-ttft.estimate * 100:.0f} % [{-ttft.high * 100:.0f}, {-ttft.low * 100:.0f}] less".replace("-", "\N{MINUS SIGN}")

"""Load by the machine: lengths, rate and number of the twin's requests, so that its workers are busy but not overloaded.

Prefill utilisation is the share of the run's time that the prefill worker computes prompts. At 0.6 requests queue sometimes, as in a
cluster that is well used; near 1 every policy misses the SLO because of the queue alone, and nothing is learnt about transfers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from abkt.profile.schema import Profile
from abkt.records import SLO
from sim.workload.requests import Request
from sim.workload.scaling import Scaling, scale

MOST = 0.95  # above this utilisation a queue grows without end
DECODE_MOST = 0.5  # of the decode worker, so that decoding does not decide the answer
SHARED_MOST = 0.85  # of prefill and decode together where both workers share a core
REPEATS, WANTED_REPEATS, MOST_REPEATS = 3, 5, 10  # an interval over 3 repeats is 1.5 to 2 times as wide as one over 5
FEWEST, MOST_REQUESTS = 12, 48  # requests of one run
WANTED = 24  # requests of one run that the lengths are chosen for
LEAST_MEAN_ISL = 128  # tokens; shorter prompts would measure fixed costs only
LEAST_OSL, MOST_OSL = 8, 64
OSL_SCALE = 0.1
PAUSE_S = 1.0  # of each run, beyond the time in which its requests arrive
LONE = 10.0  # the SLO's limits, as multiples of what a lone request needs; Mooncake (FAST'25) sets its limits in this form too
SERVED, HEADROOM = 0.98, 1.25  # and no less than this share of the requests needs over a link without limits, times the headroom


@dataclass(frozen=True, slots=True)
class Given:
    """Which parts of the load the user has given; those are kept as they are."""

    lengths: bool = False
    answers: bool = False
    requests: bool = False
    rate: bool = False


@dataclass(frozen=True, slots=True)
class Aim:
    """load: prefill utilisation. budget_s: time for all real runs. policies: number of policies; the last `optional` of them may be left
    out. shared_core: whether the prefill and the decode worker share one core."""

    load: float
    budget_s: float
    policies: int
    optional: int = 0
    shared_core: bool = False


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The load of a twin.

    Parameters
    ----------
    requests, scaling, facts : the scaled requests, and how they were scaled.
    repeats, policies : how many repeats and policies run.
    prefill, decode, encode : planned utilisations; decode as if requests were decoded one at a time, encode by the deepest coder.
    notes : what had to be changed, one sentence each.
    """

    requests: Sequence[Request]
    scaling: Scaling
    repeats: int
    policies: int
    prefill: float
    decode: float
    encode: float
    facts: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def span_s(self) -> float:
        return span_s(self.requests)


def plan_load(trace: Sequence[Request], profile: Profile, configured: Scaling, given: Given, aim: Aim) -> LoadPlan:
    """Choose the load of a twin.

    Parameters
    ----------
    trace : the requests before scaling.
    profile : measured costs of this machine.
    configured : the scaling of the configuration; only the parts in `given` are kept.
    given : what the user has fixed.
    aim : the utilisation and the time to aim at.

    Raises
    ------
    ValueError
        One line, where what the user has given would keep a worker busy for more than 0.95 of the time.
    """
    costs = Costs(profile)
    scaling = _lengths(trace, costs, configured, given, aim)
    lengths = _scaled(trace, replace(scaling, requests=configured.requests if given.requests else MOST_REQUESTS))
    mean_s = sum(map(costs.prefill_s, lengths)) / len(lengths)
    requests, repeats, policies = _sizes(mean_s, aim, configured.requests if given.requests else None)
    if given.requests and configured.requests is None:
        requests = len(lengths)
    scaling = replace(scaling, requests=requests)
    notes = []
    if not given.rate:
        scaling = _at_load(trace, costs, replace(scaling, speedup=1.0), aim.load)
    if not given.answers:
        bound = min(DECODE_MOST, SHARED_MOST - aim.load) if aim.shared_core else DECODE_MOST
        scaling = _answers(trace, costs, scaling, bound)
    taken, facts = scale(trace, scaling)
    busiest = max(costs.prefill(taken) + costs.encode(taken), costs.decode(taken))
    if busiest > MOST:
        if given.rate:
            fits = scaling.speedup * aim.load / busiest
            raise ValueError(
                f"this load would keep a worker busy for {busiest:.0%} of the time, and above {MOST:.0%} every policy only queues: "
                f"give workload.scaling.speedup={fits:.2g} or less, or leave it out"
            )
        notes.append(f"the rate was lowered to {MOST / busiest:.0%}, because coding or decoding would have overloaded a worker")
        scaling = replace(scaling, speedup=scaling.speedup * MOST / busiest)
        taken, facts = scale(trace, scaling)
    facts = {**facts, "isl_scale": scaling.isl_scale, "osl_scale": scaling.osl_scale, "speedup": scaling.speedup}
    return LoadPlan(taken, scaling, repeats, policies, costs.prefill(taken), costs.decode(taken), costs.encode(taken), facts, tuple(notes))


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds and utilisations of requests by a profile."""

    profile: Profile

    def prefill_s(self, request: Request) -> float:
        return self.profile.fit("prefill").seconds(tokens=request.isl)

    def prefill(self, requests: Sequence[Request]) -> float:
        return sum(map(self.prefill_s, requests)) / span_s(requests)

    def encode(self, requests: Sequence[Request]) -> float:
        fit = self.profile.fit("encode/8")
        return sum(fit.seconds(tokens=r.isl) for r in requests) / span_s(requests)

    def decode(self, requests: Sequence[Request]) -> float:
        fit = self.profile.fit("decode")
        return sum((r.osl - 1) * fit.seconds(batch=1, context=r.isl + r.osl / 2) for r in requests) / span_s(requests)

    def slo(self, requests: Sequence[Request]) -> SLO:
        """The limits by the machine: multiples of what the median request needs alone, over a link without limits, to two digits."""
        isl = sorted(r.isl for r in requests)[len(requests) // 2]
        raw = sum(self.profile.codec_s("raw", isl))
        alone_s = self.profile.fit("prefill").seconds(tokens=isl) + raw
        iteration_s = self.profile.fit("decode").seconds(batch=1, context=isl)
        return SLO(two_digits(LONE * alone_s), two_digits(LONE * iteration_s))


def limits(lone: SLO, ttft_s: Sequence[float], tpot_s: Sequence[float]) -> SLO:
    """The limits by the machine at this load: those of a lone request, or what SERVED of the requests need, with HEADROOM.

    With less, requests would miss the SLO because of the queue alone, whatever the link and the policy.

    Parameters
    ----------
    lone : multiples of what a lone request needs.
    ttft_s, tpot_s : predicted times at this load, with KV of 8 bits over a link without limits.
    """
    ttft, tpot = (HEADROOM * float(np.nanquantile(times, SERVED)) for times in (ttft_s, tpot_s))
    return SLO(two_digits(max(lone.ttft_s, ttft)), two_digits(max(lone.tpot_s, tpot)))


def span_s(requests: Sequence[Request]) -> float:
    """The time in which the requests arrive, the mean gap after the last one included."""
    if len(requests) < 2:
        raise ValueError("a study needs at least two requests")
    seconds = requests[-1].arrival_s - requests[0].arrival_s
    if seconds <= 0:
        raise ValueError("all requests arrive at once; give workload.rate_per_s")
    return seconds * len(requests) / (len(requests) - 1)


def two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def _lengths(trace: Sequence[Request], costs: Costs, configured: Scaling, given: Given, aim: Aim) -> Scaling:
    """The scaling of prompts: the longest for which WANTED requests a run fit into the time, within what the profile has measured."""
    scaling = configured
    if not given.lengths:
        fit = costs.profile.fit("prefill")
        low, high = int(fit.low.get("tokens", 1)), int(fit.high.get("tokens", 1 << 20))
        scaling = replace(scaling, isl_min=low, isl_max=high - MOST_OSL if high > 4 * MOST_OSL else high)
        sample = trace[scaling.skip : scaling.skip + MOST_REQUESTS]
        if not sample:
            raise ValueError(f"no request is left: the trace has {len(trace)}, and scaling skips {scaling.skip}")
        lengths = sorted(r.isl for r in sample)
        longest = min(1.0, scaling.isl_max / lengths[int(0.9 * len(lengths))])  # nine of ten prompts are not clipped
        shortest = min(longest, LEAST_MEAN_ISL * len(lengths) / sum(lengths))
        room_s = aim.budget_s / (REPEATS * aim.policies) - PAUSE_S
        wanted_s = room_s * aim.load / WANTED

        def too_long(factor: float) -> bool:
            scaled, _ = scale(sample, replace(scaling, isl_scale=factor, requests=None, skip=0))
            return sum(map(costs.prefill_s, scaled)) / len(scaled) > wanted_s

        scaling = replace(scaling, isl_scale=two_digits(largest(shortest, longest, too_long)))
    return scaling if given.answers else replace(scaling, osl_scale=OSL_SCALE, osl_min=LEAST_OSL, osl_max=MOST_OSL)


def largest(low: float, high: float, too_large: Callable[[float], bool]) -> float:
    """The largest value in [low, high] that is not too large; low where all are. By bisection of the logarithm."""
    if not too_large(high):
        return high
    for _ in range(20):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if too_large(middle) else (middle, high)
    return low


def _sizes(mean_s: float, aim: Aim, fixed: int | None) -> tuple[int, int, int]:
    """(requests of a run, repeats, policies) that fit into the time. Policies are left out only where the fewest requests do not fit."""
    gap_s = mean_s / aim.load
    policies = aim.policies
    while policies > max(2, aim.policies - aim.optional) and aim.budget_s / (REPEATS * policies) < PAUSE_S + (fixed or FEWEST) * gap_s:
        policies -= 1
    fitting = [int((aim.budget_s / (n * policies) - PAUSE_S) / gap_s) for n in range(WANTED_REPEATS, REPEATS - 1, -1)]
    requests = fixed or min(MOST_REQUESTS, max(FEWEST, next((n for n in fitting if n >= WANTED), fitting[-1])))
    repeats = int(aim.budget_s / (policies * (PAUSE_S + requests * gap_s)))
    return requests, min(MOST_REPEATS, max(REPEATS, repeats)), policies


def _at_load(trace: Sequence[Request], costs: Costs, scaling: Scaling, load: float) -> Scaling:
    found = costs.prefill(_scaled(trace, scaling))
    return replace(scaling, speedup=scaling.speedup * load / found)


def _answers(trace: Sequence[Request], costs: Costs, scaling: Scaling, bound: float) -> Scaling:
    """Answers that are short enough for the decode worker to be busy for at most `bound` of the time, or the shortest."""

    def too_long(factor: float) -> bool:
        return costs.decode(_scaled(trace, replace(scaling, osl_scale=factor))) > bound

    return replace(scaling, osl_scale=two_digits(largest(scaling.osl_scale / 100, scaling.osl_scale, too_long)))


def _scaled(trace: Sequence[Request], scaling: Scaling) -> list[Request]:
    return scale(trace, scaling)[0]

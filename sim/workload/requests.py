"""Requests with their arrival times and lengths, and the scaling of a trace's requests to a cluster's size.

Not modelled: requests that depend on the answer to another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from abkt.ranges import OutOfRange, bound


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a workload.

    Parameters
    ----------
    request_id : number in the trace, or counted from 0.
    arrival_s : seconds since the start of the run.
    isl, osl : prompt and output tokens, each at least 1.
    hash_ids : hashes of the prompt's prefix blocks, in order; empty where the trace has none.
    hash_tokens : prompt tokens that a hash stands for; 0: not known.

    Raises
    ------
    ValueError : a value is out of range.
    """

    request_id: int
    arrival_s: float
    isl: int
    osl: int
    hash_ids: tuple[int, ...] = ()
    hash_tokens: int = 0

    def __post_init__(self) -> None:
        if self.isl < 1 or self.osl < 1:
            raise ValueError(f"request {self.request_id}: isl is {self.isl} and osl {self.osl}; both must be at least 1")
        if not 0 <= self.arrival_s < math.inf:
            raise ValueError(f"request {self.request_id}: arrival is {self.arrival_s} s; it must be finite and not negative")


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a trace is scaled: skip the first `skip` requests, take the next `requests`, divide times by speedup, scale and clip lengths."""

    requests: int | None = None
    speedup: float = 1.0
    isl_scale: float = 1.0
    osl_scale: float = 1.0
    isl_max: int = 1 << 40
    osl_max: int = 1 << 40
    isl_min: int = 1
    osl_min: int = 2  # an answer of one token needs no transfer
    skip: int = 0

    def __post_init__(self) -> None:
        bound(self, "requests", "isl_min", "isl_max", "osl_min", "osl_max", least=1)
        bound(self, "skip", least=0)
        bound(self, "speedup", "isl_scale", "osl_scale", above=0)
        for low, high in (("isl_min", "isl_max"), ("osl_min", "osl_max")):
            if getattr(self, low) > getattr(self, high):
                raise OutOfRange(f"{low} is {getattr(self, low)} and {high} {getattr(self, high)}; {low} <= {high} must hold")


def scale(requests: Sequence[Request], scaling: Scaling) -> tuple[list[Request], dict[str, float]]:
    """The scaled requests, the first arriving at 0 s, and facts about the scaling: number of clipped requests, means before and after.

    Request ids and prefix hashes stay those of the trace; a hash then stands for isl_scale times as many tokens. Raises ValueError, one
    line, where the trace has fewer requests than the scaling takes.
    """
    stop = None if scaling.requests is None else scaling.skip + scaling.requests
    taken = requests[scaling.skip : stop]
    if not taken:
        raise ValueError(f"no request is left: the trace has {len(requests):,}, and workload.scaling.skip is {scaling.skip:,}")
    if scaling.requests is not None and len(taken) < scaling.requests:
        has = f"the trace has {len(taken):,}" + (f" after the first {scaling.skip:,}" if scaling.skip else "")
        raise ValueError(f"workload.scaling.requests is {scaling.requests:,}, and {has}; give at most that many, or null for all")
    start_s = taken[0].arrival_s
    isl = [round(r.isl * scaling.isl_scale) for r in taken]
    osl = [round(r.osl * scaling.osl_scale) for r in taken]
    scaled = [
        Request(
            request_id=r.request_id,
            arrival_s=(r.arrival_s - start_s) / scaling.speedup,
            isl=min(max(i, scaling.isl_min), scaling.isl_max),
            osl=min(max(o, scaling.osl_min), scaling.osl_max),
            hash_ids=r.hash_ids,
            hash_tokens=round(r.hash_tokens * scaling.isl_scale),
        )
        for r, i, o in zip(taken, isl, osl)
    ]
    return scaled, {
        "requests": len(scaled),
        "requests_in_trace": len(requests),
        "isl_clipped": sum(i != r.isl for i, r in zip(isl, scaled)),
        "osl_clipped": sum(o != r.osl for o, r in zip(osl, scaled)),
        "isl_mean_before": _mean([r.isl for r in taken]),
        "isl_mean_after": _mean([r.isl for r in scaled]),
        "osl_mean_before": _mean([r.osl for r in taken]),
        "osl_mean_after": _mean([r.osl for r in scaled]),
        "rate_per_s_before": _rate(taken),
        "rate_per_s_after": _rate(scaled),
    }


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def _rate(requests: Sequence[Request]) -> float:
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    return len(requests) / span_s if span_s > 0 else math.inf

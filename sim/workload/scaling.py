"""The scaling of a trace's requests to a cluster's size.

Not modelled: lengths that change together with the rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from abkt.ranges import OutOfRange, bound
from sim.workload.requests import Request


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

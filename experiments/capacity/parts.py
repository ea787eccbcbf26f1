"""Parts of a workload, each run at any rate: its arrivals are moved closer together or further apart, and all else stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from abkt.records import summarize
from experiments.lib.config import instance
from experiments.lib.simulation import SimulateConfig
from experiments.sweeps.point import configured, run_requests, workload_requests
from sim.cost import Costs
from sim.workload.requests import Request

FEWEST = 20  # requests of a part: fewer say nothing about a share of 90 %


@dataclass(frozen=True, slots=True)
class Part:
    """Requests `start` to `stop` of a workload. rate_per_s: their mean rate as the workload has them."""

    start: int
    stop: int
    rate_per_s: float

    def of(self, requests: Sequence[Request], rate_per_s: float) -> list[Request]:
        """The part's requests at this rate, the first at 0 s."""
        taken = requests[self.start : self.stop]
        factor, first_s = self.rate_per_s / rate_per_s, taken[0].arrival_s
        return [replace(request, arrival_s=(request.arrival_s - first_s) * factor) for request in taken]


def parts(requests: Sequence[Request], repeats: int, size: int) -> tuple[Part, ...]:
    """`repeats` parts of `size` requests, spread evenly over a workload; no request is in two of them.

    Raises ValueError, one line, where there are not enough requests, or a part's requests all arrive at once.
    """
    if len(requests) < repeats * size:
        raise ValueError(f"the workload has {len(requests):,} requests; repeats={repeats} parts of requests={size} need {repeats * size:,}")
    starts = [index * (len(requests) // repeats) for index in range(repeats)]
    found = []
    for start in starts:
        span_s = requests[start + size - 1].arrival_s - requests[start].arrival_s
        if not span_s > 0:
            raise ValueError("all requests arrive at once, so they have no rate: give workload.rate_per_s=1 for random arrivals")
        found.append(Part(start, start + size, size / span_s))
    return tuple(found)


def plain_workload(config: dict[str, Any], requests: int) -> dict[str, Any]:
    """The plain configuration of a simulation, in which a synthetic workload makes that many requests.

    Raises ValueError for a closed loop.
    """
    workload = config["workload"]
    if workload.get("concurrency"):
        raise ValueError("a closed loop has no rate of its own; set workload.concurrency=0 or choose another workload")
    return {**config, "workload": {**workload, "requests": requests}} if "requests" in workload else config


def run_part(config: Mapping[str, Any], part: Part, rate_per_s: float) -> dict[str, Any]:
    """Simulate a part at a rate. Returns the flat summary, and `late_share`: the share within the SLO of the later half of the requests."""
    simulated = configured(config)
    result, figures = run_requests(simulated, part.of(workload_requests(simulated), rate_per_s))
    late = result.requests[len(result.requests) // 2 :]
    return {**figures, "late_share": summarize(late, simulated.slo, 0.0)["good_share"]}


def prefill_rate_per_s(config: SimulateConfig, requests: Sequence[Request]) -> float:
    """Requests that the cluster's prefill nodes compute in a second, one after another and without waiting: where a search begins."""
    costs = Costs(instance(config.hardware, config.model, config.curves).profile)
    return config.cluster.prefill * len(requests) / sum(costs.prefill_s(request.isl) for request in requests)

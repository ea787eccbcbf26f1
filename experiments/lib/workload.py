"""The workloads of conf/workload as requests: a trace, clients of ServeGen, or synthetic ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Discriminator, Tag

from abkt.policy.build import build
from sim.workload.requests import Request, Scaling, scale
from sim.workload.servegen import read_servegen
from sim.workload.synthetic import Arrivals, synthetic
from sim.workload.traces import read_trace

POISSON = {"_target_": "sim.workload.synthetic.Poisson"}


@dataclass(frozen=True, slots=True)
class TraceWorkload:
    """A scaled trace file. rate_per_s above 0: `arrivals` at this rate replace the arrival times of the trace (a file of lengths has none).

    concurrency above 0: a closed loop with this many clients, which ignores all arrival times.
    """

    path: Path
    format: str
    scaling: Scaling
    rate_per_s: float = 0.0
    arrivals: dict[str, Any] = field(default_factory=lambda: dict(POISSON))
    concurrency: int = 0

    def __post_init__(self) -> None:
        if self.rate_per_s < 0 or self.concurrency < 0:
            raise ValueError("rate_per_s and concurrency must not be negative; 0 leaves the trace its own times")

    def requests(self, seed: int) -> list[Request]:
        if not self.rate_per_s and not self.concurrency:
            return read_trace(self.path.expanduser(), self.format, seed)
        kind, rate, random = arrivals_of(self.arrivals), self.rate_per_s or 1.0, np.random.default_rng(seed)

        def times_s(count: int) -> Sequence[float]:
            times: list[float] = kind.times_s(count, rate, random).tolist()
            return times

        return read_trace(self.path.expanduser(), self.format, seed, times_s)

    def files(self) -> list[Path]:
        return [self.path.expanduser()]


@dataclass(frozen=True, slots=True)
class ServegenWorkload:
    """ServeGen's published clients, from start_s of their week; see sim.workload.servegen."""

    lengths: Path
    rates: Path
    start_s: float
    duration_s: float
    share: float
    scaling: Scaling
    concurrency: int = 0

    def requests(self, seed: int) -> tuple[list[Request], float]:
        lengths, rates = self.files()
        return read_servegen(lengths, rates, self.start_s, self.duration_s, self.share, seed)

    def files(self) -> list[Path]:
        return [self.lengths.expanduser(), self.rates.expanduser()]


@dataclass(frozen=True, slots=True)
class SyntheticWorkload:
    """Synthetic requests. concurrency above 0: a closed loop with this many clients, which ignores the rate."""

    requests: int
    rate_per_s: float
    isl: int
    osl: int
    variation: float
    arrivals: dict[str, Any] = field(default_factory=lambda: dict(POISSON))
    concurrency: int = 0


Workload = Annotated[
    Annotated[TraceWorkload, Tag("TraceWorkload")]
    | Annotated[ServegenWorkload, Tag("ServegenWorkload")]
    | Annotated[SyntheticWorkload, Tag("SyntheticWorkload")],
    Discriminator(lambda value: _kind_of(value)),
]


def read_workload(
    workload: TraceWorkload | ServegenWorkload | SyntheticWorkload, seed: int, closed_loop: bool = False
) -> tuple[list[Request], dict[str, float]]:
    """(the requests in order of arrival, how they were scaled). closed_loop: whether the caller can run a closed loop.

    Raises ValueError, one line, where the workload is a closed loop and the caller cannot run one, or a file cannot be read.
    """
    if workload.concurrency and not closed_loop:
        raise ValueError("only `abkt simulate` and `abkt replay` run a closed loop; set workload.concurrency=0 or choose another workload")
    if isinstance(workload, SyntheticWorkload):
        w, kind = workload, arrivals_of(workload.arrivals)
        return synthetic(w.requests, w.rate_per_s, w.isl, w.osl, w.variation, seed, kind), {}
    if isinstance(workload, ServegenWorkload):
        requests, borrowed = workload.requests(seed)
        scaled, facts = scale(requests, workload.scaling)
        return scaled, {**facts, "lengths_of_other_clients": borrowed}
    return scale(workload.requests(seed), workload.scaling)


def workload_files(workload: TraceWorkload | ServegenWorkload | SyntheticWorkload) -> list[Path]:
    return [] if isinstance(workload, SyntheticWorkload) else workload.files()


def arrivals_of(config: dict[str, Any]) -> Arrivals:
    made = build(config)
    if not hasattr(made, "times_s"):
        raise ValueError(
            f"workload.arrivals is a {type(made).__name__}; a class of sim.workload.synthetic such as Poisson or Gamma is needed"
        )
    return made  # type: ignore[no-any-return]


def _kind_of(value: Any) -> str:
    """The class that plain values stand for, by the key that they have. An object has its own class."""
    if not isinstance(value, dict):
        return type(value).__name__
    return "TraceWorkload" if "path" in value else "ServegenWorkload" if "rates" in value else "SyntheticWorkload"

"""The workloads of conf/workload as requests: a trace, clients of ServeGen, or synthetic ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Tag

from abkt.policy.build import build
from abkt.ranges import bound
from experiments.lib.config import PolicyConfig
from sim.workload.requests import Request
from sim.workload.scaling import Scaling, scale
from sim.workload.servegen import read_servegen
from sim.workload.synthetic import Arrivals, synthetic
from sim.workload.trace_formats import MOST_TOKENS
from sim.workload.traces import TraceKind, load_trace

MOST_REQUESTS, MOST_CLIENTS, MOST_PER_S, MOST_S = 100_000_000, 1_000_000, 1e6, 1e9
POISSON = {"_target_": "sim.workload.synthetic.Poisson"}


@dataclass(frozen=True, slots=True)
class TraceWorkload:
    """A scaled trace file.

    Parameters
    ----------
    path, format, time_unit, hash_block, skip_empty : see sim.workload.traces.load_trace; hash_block is its hash_tokens, and null is auto.
    scaling : how it is scaled.
    rate_per_s : above 0: `arrivals` at this rate replace the arrival times of the trace (a file of lengths has none).
    concurrency : above 0: a closed loop with this many clients, which ignores all arrival times.
    """

    path: Path
    format: str
    scaling: Scaling
    time_unit: Literal["auto", "s", "ms"] = "auto"
    hash_block: int | None = None
    skip_empty: bool = False
    rate_per_s: float = 0.0
    arrivals: PolicyConfig = field(default_factory=lambda: dict(POISSON))
    concurrency: int = 0

    def __post_init__(self) -> None:
        bound(self, "hash_block", least=1, most=MOST_TOKENS)
        bound(self, "rate_per_s", least=0, most=MOST_PER_S)
        bound(self, "concurrency", least=0, most=MOST_CLIENTS)

    def read(self, seed: int) -> tuple[list[Request], TraceKind]:
        load = partial(
            load_trace,
            self.path.expanduser(),
            self.format,
            seed,
            unit=self.time_unit,
            hash_tokens=self.hash_block,
            skip_empty=self.skip_empty,
        )
        if not self.rate_per_s and not self.concurrency:
            return load()
        kind, rate, random = arrivals_of(self.arrivals), self.rate_per_s or 1.0, np.random.default_rng(seed)

        def times_s(count: int) -> Sequence[float]:
            times: list[float] = kind.times_s(count, rate, random).tolist()
            return times

        return load(arrivals=times_s)

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

    def __post_init__(self) -> None:
        bound(self, "start_s", least=0, most=MOST_S)
        bound(self, "duration_s", above=0, most=MOST_S)
        bound(self, "share", above=0, most=1)
        bound(self, "concurrency", least=0, most=MOST_CLIENTS)

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
    arrivals: PolicyConfig = field(default_factory=lambda: dict(POISSON))
    concurrency: int = 0

    def __post_init__(self) -> None:
        bound(self, "requests", least=1, most=MOST_REQUESTS)
        bound(self, "rate_per_s", above=0, most=MOST_PER_S)
        bound(self, "isl", "osl", least=1, most=MOST_TOKENS)
        bound(self, "variation", least=0, most=100)
        bound(self, "concurrency", least=0, most=MOST_CLIENTS)


Workload = Annotated[
    Annotated[TraceWorkload, Tag("TraceWorkload")]
    | Annotated[ServegenWorkload, Tag("ServegenWorkload")]
    | Annotated[SyntheticWorkload, Tag("SyntheticWorkload")],
    Discriminator(lambda value: _kind_of(value)),
]


def read_workload(
    workload: TraceWorkload | ServegenWorkload | SyntheticWorkload, seed: int, closed_loop: bool = False
) -> tuple[list[Request], dict[str, Any]]:
    """(the requests in order of arrival, what they are and how they were scaled). closed_loop: whether the caller can run a closed loop.

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
    requests, whose = workload.read(seed)
    scaled, facts = scale(requests, workload.scaling)
    return scaled, {**facts, "trace": workload.path.name, **asdict(whose)}


def workload_words(name: str, scaling: Mapping[str, Any]) -> str:
    """Whose requests they are, for the plan line. name: the choice of workload. scaling: as read_workload returns it."""
    if "trace" not in scaling:
        return name
    kind = TraceKind(*(scaling[key] for key in ("format", "unit", "hash_tokens", "inferred", "left_out")))
    return f"{scaling['trace']}: {kind.words()}{clipped_words(scaling)}"


def clipped_words(scaling: Mapping[str, Any]) -> str:
    """How many lengths the scaling has clipped; empty for none."""
    clipped = {words: scaling.get(key, 0) for key, words in (("isl_clipped", "prompts"), ("osl_clipped", "answers"))}
    shown = " and ".join(f"{count:,} {words}" for words, count in clipped.items() if count)
    return f", {shown} clipped to the limits of workload.scaling" if shown else ""


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

"""The figures of a policy's requests, and paired comparisons of two policies over the same repeats, with intervals."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from abkt.records import RequestRecord

RESAMPLES = 2000
P99_REQUESTS = 100  # requests of a repeat from which on a p99 of times is shown: with fewer it is the worst request


@dataclass(frozen=True, slots=True)
class Score:
    """The requests of one policy: one array for each repeat. A request that was not completed has an infinite time."""

    name: str
    ttft_s: list[np.ndarray] = field(default_factory=list)
    exposed_s: list[np.ndarray] = field(default_factory=list)
    distortion: list[np.ndarray] = field(default_factory=list)
    wire_share: list[float] = field(default_factory=list)

    def add(self, records: Sequence[RequestRecord]) -> None:
        """Add one repeat."""
        done = [r for r in records if r.outcome == "completed"]
        lost = len(records) - len(done)
        self.ttft_s.append(np.array([r.ttft_s for r in done] + [np.inf] * lost))
        self.exposed_s.append(np.array([r.transfer_exposed_s for r in done] + [np.inf] * lost))
        self.distortion.append(np.array([r.distortion_token_weighted for r in done]))
        self.wire_share.append(sum(r.wire_bytes for r in done) / max(1, sum(r.raw_bytes for r in done)))

    @property
    def all_distortion(self) -> np.ndarray:
        return np.concatenate(self.distortion)

    @property
    def mean_ttft_s(self) -> float:
        return float(np.concatenate(self.ttft_s).mean())

    @property
    def has_p99(self) -> bool:
        """Whether every repeat has enough requests for a p99 of their times."""
        return min(map(len, self.ttft_s)) >= P99_REQUESTS

    def attainment(self, slo_ttft_s: float) -> float:
        """Share of the requests within the limit."""
        return float((np.concatenate(self.ttft_s) <= slo_ttft_s).mean())

    def row(self, slo_ttft_s: float) -> dict[str, float]:
        """The figures over all repeats together; p99s of times only where there are enough requests."""
        ttft_s, exposed_s, distortion = np.concatenate(self.ttft_s), np.concatenate(self.exposed_s), self.all_distortion
        made = {
            "within_slo": self.attainment(slo_ttft_s),
            "ttft_mean_s": float(ttft_s.mean()),
            "ttft_worst_s": float(ttft_s.max()),
            "exposed_mean_s": float(exposed_s.mean()),
            "distortion_mean": float(distortion.mean()),
            "distortion_p99": p99(distortion),
            "wire_share": float(np.mean(self.wire_share)),
        }
        return {**made, "ttft_p99_s": p99(ttft_s), "exposed_p99_s": p99(exposed_s)} if self.has_p99 else made


Figure = Callable[[np.ndarray], float]
Interval = dict[str, float]


def not_exceeded(values: np.ndarray, share: float) -> float:
    """The least of the values that this share of them does not exceed. There is no interpolation, because values may be infinite."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def p99(values: np.ndarray) -> float:
    return not_exceeded(values, 0.99)


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def worst(values: np.ndarray) -> float:
    return float(values.max())


def within(slo_ttft_s: float) -> Figure:
    """Share of the times within the limit."""
    return lambda ttft_s: float((ttft_s <= slo_ttft_s).mean())


def ratio(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], figure: Figure) -> Interval:
    """figure(ours) / figure(theirs) over all repeats together, and a 95 % bootstrap interval over the repeats, drawn in pairs."""
    return _paired(ours, theirs, figure, operator.truediv, "ratio")


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], figure: Figure) -> Interval:
    """figure(ours) - figure(theirs), with the same kind of interval."""
    return _paired(ours, theirs, figure, operator.sub, "difference")


def _paired(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], figure: Figure, of: Callable[[float, float], float], name: str
) -> Interval:
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} repeats cannot be paired with {len(theirs)}")
    draws = np.random.default_rng(0).integers(0, len(ours), (RESAMPLES, len(ours)))

    def compared(chosen: Sequence[int]) -> float:
        return of(figure(np.concatenate([ours[i] for i in chosen])), figure(np.concatenate([theirs[i] for i in chosen])))

    distinct, drawn = np.unique(np.sort(draws, axis=1), axis=0, return_inverse=True)  # few repeats have few different samples
    low, high = np.quantile(np.array([compared(chosen) for chosen in distinct])[drawn.ravel()], (0.025, 0.975))
    return {name: compared(range(len(ours))), "low": float(low), "high": float(high)}

"""The figures of a policy's requests, and ratios between two policies over the same repeats, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from abkt.records import RequestRecord

RESAMPLES = 2000


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

    def met_for(self, share: float) -> float:
        """The least TTFT limit, in seconds, that this share of all requests keeps."""
        return not_exceeded(np.concatenate(self.ttft_s), share)

    def attainment(self, slo_ttft_s: float) -> float:
        return float((np.concatenate(self.ttft_s) <= slo_ttft_s).mean())

    def row(self, slo_ttft_s: float) -> dict[str, float]:
        """The figures over all repeats together."""
        ttft_s, exposed_s, distortion = np.concatenate(self.ttft_s), np.concatenate(self.exposed_s), self.all_distortion
        return {
            "within_slo": self.attainment(slo_ttft_s),
            "ttft_mean_s": float(ttft_s.mean()),
            "ttft_p99_s": p99(ttft_s),
            "ttft_worst_s": float(ttft_s.max()),
            "exposed_mean_s": float(exposed_s.mean()),
            "exposed_p99_s": p99(exposed_s),
            "distortion_mean": float(distortion.mean()),
            "distortion_p99": p99(distortion),
            "wire_share": float(np.mean(self.wire_share)),
        }


Figure = Callable[[np.ndarray], float]


def not_exceeded(values: np.ndarray, share: float) -> float:
    """The least of the values that this share of them does not exceed. There is no interpolation, because values may be infinite."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def p99(values: np.ndarray) -> float:
    return not_exceeded(values, 0.99)


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def worst(values: np.ndarray) -> float:
    return float(values.max())


def ratio(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], figure: Figure, seed: int = 0) -> dict[str, float]:
    """figure(ours) / figure(theirs) over all repeats together, and a 95 % bootstrap interval over the repeats, drawn in pairs."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} repeats cannot be paired with {len(theirs)}")
    draws = np.random.default_rng(seed).integers(0, len(ours), (RESAMPLES, len(ours)))

    def of(chosen: Sequence[int]) -> float:
        return figure(np.concatenate([ours[i] for i in chosen])) / figure(np.concatenate([theirs[i] for i in chosen]))

    low, high = np.quantile([of(chosen) for chosen in draws], (0.025, 0.975))
    return {"ratio": of(range(len(ours))), "low": float(low), "high": float(high)}

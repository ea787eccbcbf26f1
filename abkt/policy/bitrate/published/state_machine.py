"""8, 4 or 2 bits, by the state of the link: GOOD, DEGRADED or POOR. The state falls quickly and rises slowly.

The rate of each `sample_s` of sending is classified: GOOD if it is at least good_share of the line rate, POOR if it is below poor_share,
DEGRADED otherwise. The newest class becomes the state if it is worse and 2 of the last 3 samples agree with it, or if it is better and 4
of the last 5 do. The first sample sets the first state.

Source: the reference implementation (github 354100117/ABKT, backend/state_machine.py): 40 and 15 MB/s on 1 Gbit/s, so 0.32 and 0.12 of
the line rate. It declares dead bands but does not use them, so there are none here. Assumptions: one sample for each sample_s of sending,
and one for the rest at the end of a transfer (there: one per probe); 4 bits before the first sample. The reference also uses the
round-trip time, which is not measured here.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from abkt.policy.bitrate.base import stream
from abkt.policy.view import Decision, Delivered, GoodputSample, Refined, TransferView
from abkt.ranges import bound

State = Literal["good", "degraded", "poor"]
BITS: dict[State, int] = {"good": 8, "degraded": 4, "poor": 2}
RANK: dict[State, int] = {"good": 0, "degraded": 1, "poor": 2}
FALL, RISE = (2, 3), (4, 5)  # (m, n): m of the last n samples must agree


@dataclass(slots=True)
class StateMachine:
    """line_rate_bytes_per_s: highest rate of the link. good_share, poor_share: thresholds as shares of it. sample_s: seconds of sending per
    sample."""

    line_rate_bytes_per_s: float
    good_share: float = 0.32
    poor_share: float = 0.12
    sample_s: float = 0.5
    state: State | None = field(default=None, init=False)
    _samples: deque[State] = field(default_factory=lambda: deque(maxlen=max(FALL[1], RISE[1])), init=False)
    _rate: float = field(default=math.nan, init=False)
    _open_bytes: float = field(default=0.0, init=False)  # bytes sent in the current sample
    _open_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        bound(self, "line_rate_bytes_per_s", above=0, infinite=True)
        bound(self, "good_share", "poor_share", "sample_s", above=0)
        if self.poor_share > self.good_share:
            raise ValueError(f"poor_share is {self.poor_share} and good_share {self.good_share}; poor_share <= good_share must hold")

    def observe(self, now_s: float, sample: GoodputSample) -> None:
        if sample.duration_s <= 0 or sample.wire_bytes <= 0:
            return
        rate, seconds = sample.wire_bytes / sample.duration_s, sample.duration_s
        settled_s = (RISE[1] + 1) * self.sample_s  # after this many equal samples, another one changes nothing
        if seconds > settled_s + self.sample_s:
            seconds = settled_s + math.fmod(seconds, self.sample_s)
        while self._open_s + seconds >= self.sample_s:
            taken_s = self.sample_s - self._open_s
            self._classify((self._open_bytes + rate * taken_s) / self.sample_s)
            self._open_bytes = self._open_s = 0.0
            seconds -= taken_s
        self._open_bytes += rate * seconds
        self._open_s += seconds

    def delivered(self, now_s: float, done: Delivered) -> None:
        if self._open_s > 0:
            self._classify(self._open_bytes / self._open_s)
        self._open_bytes = self._open_s = 0.0

    def refined(self, now_s: float, done: Refined) -> None:
        pass

    def decide(self, now_s: float, view: TransferView) -> Decision:
        bits = BITS[self.state or "degraded"]
        return stream(view, "uniform", view.uniform.cut_of_bits(bits), bits)

    def estimate_bytes_per_s(self, now_s: float) -> float:
        return self._rate

    def _classify(self, rate: float) -> None:
        self._rate, share = rate, rate / self.line_rate_bytes_per_s
        state: State = "good" if share >= self.good_share else "poor" if share < self.poor_share else "degraded"
        self._samples.append(state)
        if self.state is None or self._agreed(state, self.state):
            self.state = state

    def _agreed(self, new: State, state: State) -> bool:
        if new == state:
            return False
        enough, last = FALL if RANK[new] > RANK[state] else RISE
        return list(self._samples)[-last:].count(new) >= enough

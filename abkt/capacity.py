"""A link whose capacity changes with time: the same piecewise-constant schedule paces real sockets and drives the model's flows."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capacity:
    """bytes_per_s[i] holds from starts_s[i] on; with `period_s` the schedule repeats. Times count from the start of the run.

    math.inf is an unlimited link. Raises ValueError on an empty, unordered or non-positive schedule.
    """

    starts_s: tuple[float, ...]
    bytes_per_s: tuple[float, ...]
    period_s: float = math.inf

    def __post_init__(self) -> None:
        if not self.starts_s or len(self.starts_s) != len(self.bytes_per_s) or self.starts_s[0] != 0.0:
            raise ValueError("a capacity schedule needs one rate per start and a first start of 0 s")
        if any(b <= a for a, b in zip(self.starts_s, self.starts_s[1:], strict=False)) or self.starts_s[-1] >= self.period_s:
            raise ValueError(f"capacity starts {self.starts_s} must rise and end before the period of {self.period_s} s")
        if min(self.bytes_per_s) <= 0:
            raise ValueError(f"link capacity is {min(self.bytes_per_s)} bytes/s; it must be above 0")

    @classmethod
    def constant(cls, bytes_per_s: float) -> Capacity:
        return cls((0.0,), (bytes_per_s,))

    def at(self, now_s: float) -> tuple[float, float]:
        """(bytes per second at now_s, time of the next change; inf if none)."""
        if len(self.starts_s) == 1:
            return self.bytes_per_s[0], math.inf
        cycle = 0.0 if math.isinf(self.period_s) else math.floor(now_s / self.period_s) * self.period_s
        index = max(0, bisect_right(self.starts_s, now_s - cycle) - 1)
        last = index + 1 == len(self.starts_s)
        change_s = cycle + (self.period_s if last else self.starts_s[index + 1])
        if change_s <= now_s:  # rounding put now_s just before a change that is due
            return self.at(math.nextafter(change_s, math.inf) if change_s == now_s else now_s + 1e-9)
        return self.bytes_per_s[index], change_s

    def finish_s(self, now_s: float, size_bytes: float) -> float:
        """When the last of size_bytes has passed, if the link is free from now_s on."""
        while True:
            rate, change_s = self.at(now_s)
            if math.isinf(rate):
                return now_s
            if now_s + size_bytes / rate <= change_s:
                return now_s + size_bytes / rate
            size_bytes -= rate * (change_s - now_s)
            now_s = change_s

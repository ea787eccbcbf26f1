"""The capacity of a link over time. One piecewise-constant schedule paces real sockets and drives the simulator's flows."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from abkt.ranges import bound


@dataclass(frozen=True, slots=True)
class Capacity:
    """A piecewise-constant rate schedule of one link.

    Parameters
    ----------
    starts_s : seconds from the start of the run at which each rate begins; rising; the first is 0.
    bytes_per_s : the rates; inf: unlimited.
    period_s : seconds after which the schedule repeats; inf: it does not repeat.

    Raises
    ------
    ValueError : if the schedule is empty or unordered, or a rate is not above 0.
    """

    starts_s: tuple[float, ...]
    bytes_per_s: tuple[float, ...]
    period_s: float = math.inf

    def __post_init__(self) -> None:
        bound(self, "starts_s", least=0)
        bound(self, "bytes_per_s", "period_s", above=0, infinite=True)
        if not self.starts_s or len(self.starts_s) != len(self.bytes_per_s) or self.starts_s[0] != 0.0:
            raise ValueError("a capacity schedule needs one rate per start and a first start of 0 s")
        if any(b <= a for a, b in zip(self.starts_s, self.starts_s[1:], strict=False)) or self.starts_s[-1] >= self.period_s:
            raise ValueError(f"capacity starts {self.starts_s} must rise and end before the period of {self.period_s} s")

    @classmethod
    def constant(cls, bytes_per_s: float) -> Capacity:
        """A link with one rate."""
        return cls((0.0,), (bytes_per_s,))

    def at(self, now_s: float) -> tuple[float, float]:
        """(bytes per second at now_s, time of the next change or inf)."""
        if len(self.starts_s) == 1:
            return self.bytes_per_s[0], math.inf
        cycle = 0.0 if math.isinf(self.period_s) else math.floor(now_s / self.period_s) * self.period_s
        index = max(0, bisect_right(self.starts_s, now_s - cycle) - 1)
        last = index + 1 == len(self.starts_s)
        change_s = cycle + (self.period_s if last else self.starts_s[index + 1])
        if change_s <= now_s:  # rounding: now_s lies just before a change that is due
            return self.at(math.nextafter(change_s, math.inf) if change_s == now_s else now_s + 1e-9)
        return self.bytes_per_s[index], change_s

    def finish_s(self, now_s: float, size_bytes: float) -> float:
        """The time at which size_bytes have passed, if they start at now_s and nothing else uses the link."""
        while True:
            rate, change_s = self.at(now_s)
            if math.isinf(rate):
                return now_s
            if now_s + size_bytes / rate <= change_s:
                return now_s + size_bytes / rate
            size_bytes -= rate * (change_s - now_s)
            now_s = change_s

"""The highest rate at which something still holds: a bracket by doubling, then bisection in ratios."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

WIDEST = 64.0  # the search ends this many times above and below its start


@dataclass(frozen=True, slots=True)
class Bracket:
    """holds: the highest rate that was seen to hold, 0 if none. breaks: the lowest rate that was seen not to hold, inf if none."""

    holds: float
    breaks: float

    @property
    def found(self) -> bool:
        return self.holds > 0 and self.breaks < math.inf


def bisection(start: float, tolerance: float) -> Generator[float, bool, Bracket]:
    """Yields the rates to try and is sent whether each holds. Returns a bracket no wider than the tolerance.

    Parameters
    ----------
    start : the first rate. If it does not hold, the lowest rate of the search is tried next, so that what never holds ends soon.
    tolerance : relative width of the bracket at the end, such as 0.02.
    """
    holds, breaks = 0.0, math.inf
    if (yield start):
        holds = start
        while breaks == math.inf:
            rate = 2 * holds
            if rate > WIDEST * start:
                return Bracket(holds, breaks)
            if (yield rate):
                holds = rate
            else:
                breaks = rate
    else:
        breaks, lowest = start, start / WIDEST
        if not (yield lowest):
            return Bracket(0.0, lowest)
        holds = lowest
        while breaks / 2 > holds:
            if (yield breaks / 2):
                holds = breaks / 2
            else:
                breaks = breaks / 2
    while breaks > holds * (1 + tolerance):
        middle = math.sqrt(holds * breaks)
        if (yield middle):
            holds = middle
        else:
            breaks = middle
    return Bracket(holds, breaks)


def expected_tries(tolerance: float) -> float:
    """About how many rates one search tries: two for the bracket, and the halvings of a factor of 2."""
    return 2.5 + math.ceil(math.log2(math.log(2) / math.log1p(tolerance)))

"""The price of one NIC: how much distortion a second of it must remove. One lambda for all transfers that share it.

    price = low * exp(backlog_s / scale_s), at most high
    backlog_s = bytes that wait or move, less what of them has passed, / rate

so it stands at low while the NIC is idle, and each scale_s of work that waits makes it dearer by e. It follows a crowd at once and goes
with it: transfers are over in less time than a price would take that adds up what its queue was. With equal prices no transfer has a
byte on the NIC that removes less distortion than a byte another one had to leave out.

rate is what the NIC has passed of late while it had work, all its transfers together: at its best to begin with, then an exponential mean
over horizon_s of such time. A link that falls to a fiftieth so has fifty times the backlog in seconds.

Source: DESIGN, section 7 (`fleet`); a price that is exponential in its queue, as in Athuraliya, Low, Li and Yin, REM: active queue
management (2001). Assumptions: the constants; that by its end a transfer has passed what was expected of it; that what passes had entered
(on real NICs what refines behind a start passes too, so that while it does a crowd looks a little smaller).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SCALE_S = 0.05
LEAST_S = 0.01  # of work between two looks at the rate, so that one frame's burst is not taken for it


@dataclass(slots=True)
class Price:
    """bytes_per_s: of the NIC at its best. low, high: distortion per second that the price stays between."""

    bytes_per_s: float
    scale_s: float = SCALE_S
    low: float = 0.001
    high: float = 100.0
    horizon_s: float = 0.5
    rate_bytes_per_s: float = field(init=False)
    _entered_bytes: float = field(default=0.0, init=False)  # of the transfers that are not over
    _gone_bytes: float = field(default=0.0, init=False)  # of those, so far
    _passed_bytes: float = field(default=0.0, init=False)  # since the rate was looked at
    _looked_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not (self.bytes_per_s > 0 and self.scale_s > 0 and 0 < self.low <= self.high < math.inf):
            raise ValueError("price: bytes_per_s and scale_s must be above 0, 0 < low <= high")
        if not self.horizon_s > 0:
            raise ValueError(f"price: horizon_s is {self.horizon_s}; it must be above 0")
        self.rate_bytes_per_s = self.bytes_per_s

    @property
    def backlog_bytes(self) -> float:
        return max(0.0, self._entered_bytes - self._gone_bytes)

    def enter(self, now_s: float, wire_bytes: float) -> None:
        """So many bytes of a transfer now wait for the NIC."""
        if self._entered_bytes < 1:  # idle time says nothing of the rate, and what has passed is none of what waits
            self._entered_bytes = self._gone_bytes = self._passed_bytes = 0.0
            self._looked_s = now_s
        self._entered_bytes += wire_bytes

    def leave(self, wire_bytes: float) -> None:
        """As many as entered: the transfer is over, or will not come."""
        self._entered_bytes = max(0.0, self._entered_bytes - wire_bytes)
        self._gone_bytes = max(0.0, self._gone_bytes - wire_bytes)

    def passed(self, now_s: float, wire_bytes: float) -> None:
        """So many bytes of any transfer have passed the NIC since this was last said of it."""
        self._gone_bytes += wire_bytes
        self._passed_bytes += wire_bytes
        seconds = now_s - self._looked_s
        if seconds < LEAST_S or self._passed_bytes <= 0 or math.isinf(self.bytes_per_s):
            return
        past = math.exp(-seconds / self.horizon_s)
        self.rate_bytes_per_s = past * self.rate_bytes_per_s + (1 - past) * self._passed_bytes / seconds
        self._looked_s, self._passed_bytes = now_s, 0.0

    def per_second(self) -> float:
        exponent = self.backlog_bytes / self.rate_bytes_per_s / self.scale_s
        return min(self.high, self.low * math.exp(min(exponent, 700.0)))

    def per_byte(self) -> float:
        """What a TransferView is given; of two ends the higher one counts."""
        return self.per_second() / self.rate_bytes_per_s


@dataclass(slots=True)
class Told:
    """The price of the other end's NIC, as it was told last. Since then it is taken to have fallen as that of a NIC falls which works off
    what waits, so that what was told once does not stand for ever."""

    scale_s: float = SCALE_S
    _value: float = 0.0
    _told_s: float = 0.0

    def hear(self, now_s: float, per_byte: float) -> None:
        self._value, self._told_s = per_byte, now_s

    def per_byte(self, now_s: float) -> float:
        return self._value * math.exp(-max(0.0, now_s - self._told_s) / self.scale_s)

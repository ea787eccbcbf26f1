"""The price of one NIC: how much distortion a second of it must remove. One lambda for all transfers that share it.

    d ln(price) / dt = gain_per_s * clamp(backlog_s / target_s - 1, -1, 1),   backlog_s = bytes that wait or move / rate

so it rises by factors while more than target_s of work waits, falls by factors while the NIC is idle, and stands at the target. With equal
prices no transfer has a byte on the NIC that removes less distortion than a byte another one had to leave out.

rate is what the NIC has passed of late while it had work, all its transfers together: at its best to begin with, then an exponential mean
over horizon_s of such time. A link that falls to a fiftieth so has fifty times the backlog in seconds, and fifty times the price a byte.

Source: DESIGN, section 7 (`fleet`); a dual price that follows its queue, as in Kelly, Maulloo and Tan, Rate control for communication
networks (1998), here in the logarithm. Assumptions: the constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

GAIN_PER_S = 3.0
LEAST_S = 0.01  # of work between two looks at the rate, so that one frame's burst is not taken for it


@dataclass(slots=True)
class Price:
    """bytes_per_s: of the NIC at its best. low, high: distortion per second that the price stays between. It begins at low.

    Between two calls the backlog is what it was after the first, so a price asked for in between changes nothing.
    """

    bytes_per_s: float
    target_s: float = 1.0
    gain_per_s: float = GAIN_PER_S
    low: float = 0.01
    high: float = 100.0
    horizon_s: float = 0.5
    backlog_bytes: float = field(default=0.0, init=False)
    rate_bytes_per_s: float = field(init=False)
    _value: float = field(default=0.0, init=False)
    _since_s: float = field(default=0.0, init=False)
    _trend: float = field(default=-1.0, init=False)  # of the price's logarithm, by gain_per_s: -1 while the NIC is idle, at most 1
    _passed_bytes: float = field(default=0.0, init=False)  # since the rate was looked at
    _looked_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not (self.bytes_per_s > 0 and self.target_s > 0 and self.gain_per_s >= 0 and 0 < self.low <= self.high < math.inf):
            raise ValueError("price: bytes_per_s and target_s must be above 0, gain_per_s not below 0, 0 < low <= high")
        if not self.horizon_s > 0:
            raise ValueError(f"price: horizon_s is {self.horizon_s}; it must be above 0")
        self._value = self.low
        self.rate_bytes_per_s = self.bytes_per_s

    def enter(self, now_s: float, wire_bytes: float) -> None:
        """So many bytes now wait for the NIC."""
        if self.backlog_bytes <= 0:
            self._looked_s, self._passed_bytes = now_s, 0.0  # idle time says nothing of the rate
        self._hold(now_s, self.backlog_bytes + wire_bytes)

    def leave(self, now_s: float, wire_bytes: float) -> None:
        """They have passed, or will not come."""
        self._hold(now_s, max(0.0, self.backlog_bytes - wire_bytes))

    def passed(self, now_s: float, wire_bytes: float) -> None:
        """So many bytes of any transfer have passed the NIC since this was last said of it."""
        self._passed_bytes += wire_bytes
        seconds = now_s - self._looked_s
        if seconds < LEAST_S or self._passed_bytes <= 0 or math.isinf(self.bytes_per_s):
            return
        past = math.exp(-seconds / self.horizon_s)
        self.rate_bytes_per_s = past * self.rate_bytes_per_s + (1 - past) * self._passed_bytes / seconds
        self._looked_s, self._passed_bytes = now_s, 0.0
        self._hold(now_s, self.backlog_bytes)

    def per_second(self, now_s: float) -> float:
        if now_s <= self._since_s or (self._trend <= 0 and self._value == self.low):
            return self._value
        exponent = self.gain_per_s * self._trend * (now_s - self._since_s)
        return min(self.high, max(self.low, self._value * math.exp(min(exponent, 700.0))))

    def per_byte(self, now_s: float) -> float:
        """What a TransferView is given; of two ends the higher one counts."""
        if now_s <= self._since_s or (self._trend <= 0 and self._value == self.low):
            return self._value / self.rate_bytes_per_s  # as per_second says, for which a model asks more often than for anything else
        return self.per_second(now_s) / self.rate_bytes_per_s

    def _hold(self, now_s: float, backlog_bytes: float) -> None:
        self._value, self._since_s = self.per_second(now_s), max(now_s, self._since_s)
        self.backlog_bytes = backlog_bytes
        self._trend = min(1.0, max(-1.0, backlog_bytes / self.rate_bytes_per_s / self.target_s - 1))


@dataclass(slots=True)
class Told:
    """The price of the other end's NIC, as it was told last. Since then it is taken to have fallen as that of an idle NIC falls, so that
    what was told once does not stand for ever."""

    gain_per_s: float = GAIN_PER_S
    _value: float = 0.0
    _told_s: float = 0.0

    def hear(self, now_s: float, per_byte: float) -> None:
        self._value, self._told_s = per_byte, now_s

    def per_byte(self, now_s: float) -> float:
        return self._value * math.exp(-self.gain_per_s * max(0.0, now_s - self._told_s))

"""The price of one NIC: how much distortion a second of it must remove. One lambda for all transfers that share it.

    d ln(price) / dt = gain_per_s * clamp(backlog_s / target_s - 1, -1, 1),   backlog_s = bytes that wait or move / bytes_per_s

so it rises by factors while more than target_s of work waits, falls by factors while the NIC is idle, and stands at the target. With equal
prices no transfer has a byte on the NIC that removes less distortion than a byte another one had to leave out.

Source: DESIGN, section 7 (`fleet`); a dual price that follows its queue, as in Kelly, Maulloo and Tan, Rate control for communication
networks (1998), here in the logarithm. Assumptions: the constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Price:
    """bytes_per_s: of the NIC at its best. low, high: distortion per second that the price stays between. It begins at low.

    Between two calls the backlog is what it was after the first, so a price asked for in between changes nothing.
    """

    bytes_per_s: float
    target_s: float = 1.0
    gain_per_s: float = 1.0
    low: float = 0.01
    high: float = 100.0
    backlog_bytes: float = field(default=0.0, init=False)
    _value: float = field(default=0.0, init=False)
    _since_s: float = field(default=0.0, init=False)
    _trend: float = field(default=-1.0, init=False)  # of the price's logarithm, by gain_per_s: -1 while the NIC is idle, at most 1

    def __post_init__(self) -> None:
        if not (self.bytes_per_s > 0 and self.target_s > 0 and self.gain_per_s >= 0 and 0 < self.low <= self.high < math.inf):
            raise ValueError("price: bytes_per_s and target_s must be above 0, gain_per_s not below 0, 0 < low <= high")
        self._value = self.low

    def enter(self, now_s: float, wire_bytes: float) -> None:
        """So many bytes now wait for the NIC."""
        self._value, self._since_s = self.per_second(now_s), max(now_s, self._since_s)
        self._hold(self.backlog_bytes + wire_bytes)

    def leave(self, now_s: float, wire_bytes: float) -> None:
        """They have passed, or will not come."""
        self.enter(now_s, -wire_bytes)
        if self.backlog_bytes < 0:
            self._hold(0.0)

    def per_second(self, now_s: float) -> float:
        if now_s <= self._since_s or (self._trend <= 0 and self._value == self.low):
            return self._value
        exponent = self.gain_per_s * self._trend * (now_s - self._since_s)
        return min(self.high, max(self.low, self._value * math.exp(min(exponent, 700.0))))

    def per_byte(self, now_s: float) -> float:
        """What a TransferView is given; of two ends the higher one counts."""
        return self.per_second(now_s) / self.bytes_per_s

    def _hold(self, backlog_bytes: float) -> None:
        self.backlog_bytes = backlog_bytes
        self._trend = min(1.0, max(-1.0, backlog_bytes / self.bytes_per_s / self.target_s - 1))

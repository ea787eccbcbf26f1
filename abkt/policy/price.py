"""The price of one NIC: how much distortion a second of its time must remove. All transfers that share the NIC pay the same price (lambda).

    price = low * exp(backlog_s / scale_s), at most high
    backlog_s = (bytes of the transfers that wait or are sent - bytes of them that have passed) / rate

The price is `low` while the NIC is idle, and e times as high for each scale_s of backlog. It depends on the present backlog only, so it
rises and falls with it at once; a price that integrates its queue would react more slowly than transfers last. With equal prices no
transfer sends a byte that removes less distortion than a byte which another transfer had to leave out.

`rate` is what the NIC has passed lately while it had work, summed over all its transfers. It starts at the NIC's best rate and is then an
exponential mean over horizon_s of busy time. If a link falls to a fiftieth, the same backlog so counts fifty times the seconds.

Source: a price that is exponential in its queue, as in Athuraliya, Low, Li and Yin, REM: active queue management (2001); docs/design.md.
Assumptions: the constants; a transfer passes as many bytes as were expected of it; only such bytes pass (on real NICs refinement passes
too, so the backlog looks a little smaller while it does).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SCALE_S = 0.05
LEAST_S = 0.01  # busy seconds between two updates of the rate, so that the burst of one frame is not taken for it


@dataclass(slots=True)
class Price:
    """The price of one NIC, from its backlog.

    Parameters
    ----------
    bytes_per_s : rate of the NIC at its best; inf: unlimited, its price per byte is 0.
    scale_s : seconds of backlog that raise the price by the factor e.
    low, high : limits of the price, distortion per second.
    horizon_s : busy time over which the rate is averaged.

    Raises
    ------
    ValueError : if a value is not above 0, or low is above high.

    Source: REM, random exponential marking (Athuraliya, Low, Li and Yin 2001).
    """

    bytes_per_s: float
    scale_s: float = SCALE_S
    low: float = 0.001
    high: float = 100.0
    horizon_s: float = 0.5
    rate_bytes_per_s: float = field(init=False)
    _entered_bytes: float = field(default=0.0, init=False)  # of the transfers that are not complete
    _gone_bytes: float = field(default=0.0, init=False)  # of those, passed so far
    _passed_bytes: float = field(default=0.0, init=False)  # since the last update of the rate
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
        """A transfer of this many bytes now waits for the NIC."""
        if self._entered_bytes < 1:  # after idle time: it says nothing about the rate, and earlier bytes are not part of the new backlog
            self._entered_bytes = self._gone_bytes = self._passed_bytes = 0.0
            self._looked_s = now_s
        self._entered_bytes += wire_bytes

    def leave(self, wire_bytes: float) -> None:
        """A transfer is complete or cancelled. wire_bytes: as many as it entered with."""
        self._entered_bytes = max(0.0, self._entered_bytes - wire_bytes)
        self._gone_bytes = max(0.0, self._gone_bytes - wire_bytes)

    def passed(self, now_s: float, wire_bytes: float) -> None:
        """This many bytes, of any transfers, have passed the NIC since the last call."""
        self._gone_bytes += wire_bytes
        self._passed_bytes += wire_bytes
        seconds = now_s - self._looked_s
        if seconds < LEAST_S or self._passed_bytes <= 0 or math.isinf(self.bytes_per_s):
            return
        past = math.exp(-seconds / self.horizon_s)
        self.rate_bytes_per_s = past * self.rate_bytes_per_s + (1 - past) * self._passed_bytes / seconds
        self._looked_s, self._passed_bytes = now_s, 0.0

    def per_second(self) -> float:
        """Distortion that a second of the NIC must remove."""
        exponent = self.backlog_bytes / self.rate_bytes_per_s / self.scale_s
        return min(self.high, self.low * math.exp(min(exponent, 700.0)))

    def per_byte(self) -> float:
        """Distortion that a byte must remove. A TransferView holds the higher price of both ends."""
        return self.per_second() / self.rate_bytes_per_s


@dataclass(slots=True)
class PeerPrice:
    """The price of the other end's NIC, from its last message. Between messages it is assumed to fall as the price of a NIC does that sends
    its backlog, so that an old message does not count for ever."""

    scale_s: float = SCALE_S
    _value: float = 0.0
    _updated_s: float = 0.0

    def update(self, now_s: float, per_byte: float) -> None:
        self._value, self._updated_s = per_byte, now_s

    def per_byte(self, now_s: float) -> float:
        return self._value * math.exp(-max(0.0, now_s - self._updated_s) / self.scale_s)

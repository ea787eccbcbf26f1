"""The price of one NIC: how much distortion a second of its time must remove. All transfers that share the NIC pay the same price (lambda).

    price = low * exp(backlog_s / scale_s), at most high
    backlog_s = (bytes of the transfers that wait or are being sent - those of these bytes that have passed) / rate

The price is `low` while the NIC is idle, and e times as high for each scale_s of backlog. It depends on the present backlog only, so it
follows the backlog at once. A price that integrates its queue would take longer to react than a transfer lasts. With equal prices, no
transfer sends a byte that removes less distortion than a byte that another transfer left out.

`rate` is the recent rate of the NIC while it had work, summed over all its transfers. It starts at the NIC's highest rate and is then an
exponential mean over horizon_s of busy time. So if a link's rate falls to a fiftieth, the same backlog is fifty times as many seconds.

Source: a price that is exponential in its queue, as in Athuraliya, Low, Li and Yin, REM: active queue management (2001); docs/design.md.
Assumptions: the constants; a transfer sends as many bytes as expected; no other bytes pass the NIC (on real NICs refinement bytes pass too,
so the backlog looks a little smaller meanwhile).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from abkt.ranges import bound

SCALE_S = 0.05
LEAST_S = 0.01  # busy seconds between two updates of the rate, so that the burst of one frame is not taken for the rate


@dataclass(slots=True)
class Price:
    """The price of one NIC, from its backlog.

    Parameters
    ----------
    bytes_per_s : highest rate of the NIC; inf: unlimited, so the price per byte is 0.
    scale_s : seconds of backlog that raise the price by the factor e.
    low, high : limits of the price, in distortion per second.
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
    _entered_bytes: float = field(default=0.0, init=False)  # bytes of the transfers that are not complete
    _gone_bytes: float = field(default=0.0, init=False)  # those of them that have passed
    _passed_bytes: float = field(default=0.0, init=False)  # bytes passed since the last update of the rate
    _looked_s: float = field(default=0.0, init=False)
    _known: float = field(default=math.nan, init=False)  # the price per byte, NaN after a change

    def __post_init__(self) -> None:
        bound(self, "bytes_per_s", above=0, infinite=True)
        bound(self, "scale_s", "low", "high", "horizon_s", above=0)
        if self.low > self.high:
            raise ValueError(f"price: low is {self.low} and high {self.high}; low <= high must hold")
        self.rate_bytes_per_s = self.bytes_per_s

    @property
    def backlog_bytes(self) -> float:
        return max(0.0, self._entered_bytes - self._gone_bytes)

    def enter(self, now_s: float, wire_bytes: float) -> None:
        """A transfer of this many bytes now waits for the NIC."""
        self._known = math.nan
        if self._entered_bytes < 1:  # after idle time, which says nothing about the rate; earlier bytes are not part of the new backlog
            self._entered_bytes = self._gone_bytes = self._passed_bytes = 0.0
            self._looked_s = now_s
        self._entered_bytes += wire_bytes

    def leave(self, wire_bytes: float) -> None:
        """A transfer is complete or cancelled. wire_bytes: the number given to `enter`."""
        self._known = math.nan
        self._entered_bytes = max(0.0, self._entered_bytes - wire_bytes)
        self._gone_bytes = max(0.0, self._gone_bytes - wire_bytes)

    def passed(self, now_s: float, wire_bytes: float) -> None:
        """This many bytes, of any transfers, have passed the NIC since the last call."""
        self._known = math.nan
        self._gone_bytes += wire_bytes
        self._passed_bytes += wire_bytes
        seconds = now_s - self._looked_s
        if seconds < LEAST_S or self._passed_bytes <= 0 or math.isinf(self.bytes_per_s):
            return
        past = math.exp(-seconds / self.horizon_s)
        self.rate_bytes_per_s = past * self.rate_bytes_per_s + (1 - past) * self._passed_bytes / seconds
        self._looked_s, self._passed_bytes = now_s, 0.0

    def per_second(self) -> float:
        """The price in distortion per second of the NIC's time."""
        backlog_bytes = self._entered_bytes - self._gone_bytes
        if backlog_bytes <= 0:
            return self.low
        exponent = backlog_bytes / self.rate_bytes_per_s / self.scale_s
        return min(self.high, self.low * math.exp(min(exponent, 700.0)))

    def per_byte(self) -> float:
        """The price in distortion per byte. A TransferView holds the higher of the two ends' prices."""
        known = self._known
        if known != known:  # NaN
            known = self._known = self.per_second() / self.rate_bytes_per_s
        return known


@dataclass(slots=True)
class PeerPrice:
    """The price of the other end's NIC, from its last message. Between messages it falls as the price of a NIC that works off its backlog,
    so an old message loses its effect."""

    scale_s: float = SCALE_S
    _value: float = 0.0
    _updated_s: float = 0.0

    def update(self, now_s: float, per_byte: float) -> None:
        self._value, self._updated_s = per_byte, now_s

    def per_byte(self, now_s: float) -> float:
        return self._value * math.exp(-max(0.0, now_s - self._updated_s) / self.scale_s)

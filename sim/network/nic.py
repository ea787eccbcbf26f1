"""A node's NIC as its price sees it: what waits for it, and what passes it, all transfers together.

Not modelled: that the two ends know each other's price a little late.
"""

from __future__ import annotations

import math

from abkt.policy.price import Price


class NodeNic:
    """load: bytes/s of the transfers that flow now. What refines behind the start and other traffic do not count."""

    __slots__ = ("_limited", "bytes", "load", "price", "since_s")

    def __init__(self, price: Price) -> None:
        self.price = price
        self.load = 0.0
        self.bytes = 0.0  # that passed and the price was not told of
        self.since_s = 0.0
        self._limited = price.bytes_per_s < math.inf  # else its price does not ask

    def carry(self, now_s: float, more_bytes_per_s: float) -> None:
        """From now on so much more, or less, passes; the price hears what did until now."""
        if self._limited:
            self.bytes += self.load * (now_s - self.since_s)
            self.since_s = now_s
            self.load = max(0.0, self.load + more_bytes_per_s)
            if self.bytes > 0:
                self.price.passed(now_s, self.bytes)
                self.bytes = 0.0

    def per_byte(self, now_s: float) -> float:
        if self.load > 0:
            self.carry(now_s, 0.0)
        return self.price.per_byte()

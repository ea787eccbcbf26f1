"""The load of a node's NIC, from which its price follows: bytes that wait and bytes that pass, of all transfers together.

Not modelled: the delay until one end of a transfer knows the price of the other.
"""

from __future__ import annotations

import math

from abkt.policy.price import Price


class NodeNic:
    """One NIC and its price. load: bytes/s of the transfers that flow now; refinements and background traffic do not count."""

    __slots__ = ("_limited", "bytes", "load", "price", "since_s")

    def __init__(self, price: Price) -> None:
        self.price = price
        self.load = 0.0
        self.bytes = 0.0  # bytes that have passed since the price was last told
        self.since_s = 0.0
        self._limited = price.bytes_per_s < math.inf  # without a limit the price needs no load

    def add_load(self, now_s: float, more_bytes_per_s: float) -> None:
        """Change the load from now on. First tell the price which bytes have passed until now."""
        if self._limited:
            self.bytes += self.load * (now_s - self.since_s)
            self.since_s = now_s
            self.load = max(0.0, self.load + more_bytes_per_s)
            if self.bytes > 0:
                self.price.passed(now_s, self.bytes)
                self.bytes = 0.0

    def per_byte(self, now_s: float) -> float:
        if self.load > 0 and now_s > self.since_s:  # otherwise no byte has passed since the last change
            self.add_load(now_s, 0.0)
        return self.price.per_byte()

"""The token bucket behind one egress: what `tc tbf` is told for a rate, and what a socket gets out of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

ETHERNET_BYTES = 14
TCP_IP_BYTES = 52  # IPv4 and TCP with timestamps
QUEUE_S = 0.05
QUEUE_FRAMES = 10  # TCP's first window, so that a new connection loses nothing at a very low rate
FINE_S = 1e-3


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """burst_bytes may pass at once after a pause; up to limit_bytes wait, and what comes on top of them is dropped."""

    bytes_per_s: float
    burst_bytes: int
    limit_bytes: int

    @classmethod
    def of(cls, bytes_per_s: float, mtu: int, tick_s: float | None = None) -> TokenBucket:
        """A burst of what passes between two rings of the kernel's timer, so that it keeps the rate, but of two frames at least.

        tick_s: None is this kernel's: 1/HZ, or 1 ms where timers are finer; less costs rate on a busy machine, more is a head start for
        every transfer. The queue is 50 ms of the rate: enough for TCP to fill the link, too little to hide it.
        """
        if not 0 < bytes_per_s < float("inf"):
            raise ValueError(f"a shaped link passes {bytes_per_s} bytes/s; it must be a finite number above 0")
        tick_s = max(time.clock_getres(time.CLOCK_MONOTONIC), FINE_S) if tick_s is None else tick_s
        frame = mtu + ETHERNET_BYTES
        burst = max(2 * frame, round(bytes_per_s * tick_s))
        return cls(bytes_per_s, burst, burst + max(QUEUE_FRAMES * frame, round(bytes_per_s * QUEUE_S)))

    def tc_arguments(self) -> tuple[str, ...]:
        rate = f"{max(8, round(self.bytes_per_s * 8))}bit"
        return "tbf", "rate", rate, "burst", f"{self.burst_bytes}b", "limit", f"{self.limit_bytes}b"


def payload_share(mtu: int) -> float:
    """Of the bytes that a shaped link passes, those that a TCP socket sees."""
    return (mtu - TCP_IP_BYTES) / (mtu + ETHERNET_BYTES)

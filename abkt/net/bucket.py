"""The token bucket that shapes an egress: the parameters of `tc tbf` for a rate, and the share of that rate that a TCP socket gets."""

from __future__ import annotations

import time
from dataclasses import dataclass

ETHERNET_BYTES = 14
TCP_IP_BYTES = 52  # IPv4 and TCP with timestamps
QUEUE_S = 0.05
QUEUE_FRAMES = 10  # the initial window of TCP, so that a new connection loses no packet at a very low rate
FINE_S = 1e-3


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """burst_bytes may pass at once after a pause. Up to limit_bytes are queued; packets beyond that are dropped."""

    bytes_per_s: float
    burst_bytes: int
    limit_bytes: int

    @classmethod
    def of(cls, bytes_per_s: float, mtu: int, tick_s: float | None = None) -> TokenBucket:
        """The bucket for a rate.

        Parameters
        ----------
        bytes_per_s : float
            Rate of the link, with Ethernet frames.
        mtu : int
            Largest IP packet in bytes.
        tick_s : float, optional
            Period of the kernel's timer; by default that of this kernel: 1/HZ, or 1 ms where timers are finer. The burst is what passes
            in one period, but at least two frames: a smaller burst would lose rate on a busy machine, a larger one would give every
            transfer a head start. The queue is 50 ms of the rate: enough for TCP to fill the link, too little to hide its rate.

        Raises
        ------
        ValueError
            If the rate is not a finite number above 0.
        """
        if not 0 < bytes_per_s < float("inf"):
            raise ValueError(f"a shaped link passes {bytes_per_s} bytes/s; it must be a finite number above 0")
        tick_s = max(time.clock_getres(time.CLOCK_MONOTONIC), FINE_S) if tick_s is None else tick_s
        frame = mtu + ETHERNET_BYTES
        burst = max(2 * frame, round(bytes_per_s * tick_s))
        return cls(bytes_per_s, burst, burst + max(QUEUE_FRAMES * frame, round(bytes_per_s * QUEUE_S)))

    def tc_arguments(self) -> tuple[str, ...]:
        """The arguments of `tc qdisc` for this bucket."""
        rate = f"{max(8, round(self.bytes_per_s * 8))}bit"
        return "tbf", "rate", rate, "burst", f"{self.burst_bytes}b", "limit", f"{self.limit_bytes}b"


def payload_share(mtu: int) -> float:
    """The share of a shaped link's bytes that are payload of a TCP socket."""
    return (mtu - TCP_IP_BYTES) / (mtu + ETHERNET_BYTES)

"""A queue of packets that delays each by a fixed time, or drops it. It has no clock: the caller passes the time."""

from __future__ import annotations

import math
from collections import deque
from random import Random


class DelayLine:
    """delay_s: one-way delay in seconds. loss: probability with which each packet is dropped, drawn with `seed`. Order is kept."""

    def __init__(self, delay_s: float, loss: float, seed: int) -> None:
        if not 0 <= delay_s < 60:
            raise ValueError(f"delay_s is {delay_s}; it must be 0 or more, and below 60")
        if not 0 <= loss < 1:
            raise ValueError(f"loss is {loss}; it must be 0 or more, and below 1")
        self.delay_s = delay_s
        self.loss = loss
        self.passed = self.lost = 0
        self.late_s = self.late_sum_s = 0.0  # largest and summed delay between a packet's due time and its removal
        self._draw = Random(seed).random
        self._held: deque[tuple[float, bytes]] = deque()

    def put(self, now_s: float, packet: bytes) -> None:
        if self.loss and self._draw() < self.loss:
            self.lost += 1
        else:
            self._held.append((now_s + self.delay_s, packet))

    def next_s(self) -> float:
        """Time at which the first packet is due; inf if there is none."""
        return self._held[0][0] if self._held else math.inf

    def take(self, now_s: float) -> bytes | None:
        """Remove and return the next packet that is due; None if none is."""
        if not self._held or self._held[0][0] > now_s:
            return None
        due_s, packet = self._held.popleft()
        self.passed += 1
        self.late_s = max(self.late_s, now_s - due_s)
        self.late_sum_s += now_s - due_s
        return packet

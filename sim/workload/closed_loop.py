"""A closed loop: a fixed number of requests is in the cluster, and the next one arrives when one is done.

Not modelled: clients that think for unequal times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from sim.timers import Process, Timers, Wake
from sim.workload.requests import Request


class ClosedLoop:
    """Sends the requests in order, the first `concurrency` of them at 0 s. The requests' own arrival times are ignored.

    think_s: seconds from an answer to the client's next request.
    """

    def __init__(
        self, clock: Timers, requests: Sequence[Request], concurrency: int, place: Callable[[Request], None], think_s: float = 0.0
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; a closed loop needs at least 1 client")
        self.clock, self.place, self.think_s = clock, place, think_s
        self.waiting: Iterator[Request] = iter(requests)
        self.free = concurrency
        self.wake = Wake(clock)

    def done(self) -> None:
        """A request has left the cluster: its client sends the next one think_s later, after the events scheduled for that time."""
        if self.think_s:
            thought = Wake(self.clock)
            thought.waiter = self._ready
            thought.after(self.think_s)
        else:
            self._ready()

    def _ready(self) -> None:
        self.free += 1
        self.wake.at(self.clock.now)

    def run(self) -> Process:
        while True:
            while self.free:
                request = next(self.waiting, None)
                if request is None:
                    return
                self.free -= 1
                self.place(replace(request, arrival_s=self.clock.now))
            yield self.wake

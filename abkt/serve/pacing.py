"""The mechanisms that limit a run's rate to the capacity of its link:

tbf         the kernel, on the link itself (`tc`), in network namespaces
socket      the kernel, on the sender's TCP socket
userspace   the sending process
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from abkt.capacity import Capacity
from abkt.net.command import NetworkError
from abkt.net.namespaces import Namespaces
from abkt.net.schedule import ScheduleFollower
from abkt.serve.errors import ClusterError
from abkt.transfer.link import PacedLink
from abkt.transfer.transport import Transport
from abkt.transfer.transports.kernel_paced import KernelPaced
from abkt.transfer.transports.registry import make_transport

PACINGS = ("tbf", "socket", "userspace")


def paced_by(pacing: str, capacity: Capacity) -> str:
    """The pacing as records name it: `none` if the link is unlimited."""
    return "none" if math.isinf(min(capacity.bytes_per_s)) else pacing


class Pacing:
    """The sender's side of pacing during one run: the transport and the link.

    pacing: one of PACINGS; the frontend sets up tbf (`shaped`). transport: a name in abkt.transfer.transports.registry; it is TCP if the
    kernel paces. origin_s: time 0 of the run on CLOCK_MONOTONIC.
    """

    def __init__(self, pacing: str, capacity: Capacity, origin_s: float, transport: str = "tcp") -> None:
        self.name = paced_by(pacing, capacity)
        self.link = PacedLink(capacity, origin_s=origin_s) if pacing == "userspace" else PacedLink()
        self.transport: Transport = make_transport(transport)
        self._following = ExitStack()
        if pacing == "tbf":
            self.transport = KernelPaced()
        elif self.name == "socket":
            self.transport = paced = KernelPaced()
            self._following.enter_context(ScheduleFollower(capacity, paced.pace, origin_s))

    def close(self) -> None:
        """End pacing. Raises the error that occurred while a rate was set, if any."""
        self._following.close()


@contextmanager
def shaped(namespaces: Namespaces | None, pacing: str, capacity: Capacity, origin_s: float) -> Iterator[dict[str, Any]]:
    """The frontend's side of pacing: during the run, the links of the namespaces follow the capacity.

    Yields facts about the run, which are complete when it has ended: pacing; and with namespaces changes, the number of rate changes, and
    late_s, the delay of the latest change. Raises ClusterError if a rate cannot be set.
    """
    facts: dict[str, Any] = {"pacing": paced_by(pacing, capacity)}
    if namespaces is None:
        yield facts
        return
    try:
        with ScheduleFollower(capacity, namespaces.shape, origin_s) as follower:
            yield facts
        facts |= {"changes": follower.changes, "late_s": follower.late_s, **namespaces.facts()}
    except NetworkError as error:
        raise ClusterError(f"the network of the run broke: {error}") from None

"""Who holds the bytes of a run back to what its link passes: `tc` on the link itself, the sender's socket, this process, or nobody."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from abkt.capacity import Capacity
from abkt.net.command import NetworkError
from abkt.net.namespaces import Namespaces
from abkt.net.schedule import ScheduleFollower
from abkt.serve.frontend.process import ClusterError
from abkt.transfer.link import PacedLink
from abkt.transfer.transport import Transport
from abkt.transfer.transports.kernel_paced import KernelPaced
from abkt.transfer.transports.registry import make_transport

PACINGS = ("tbf", "socket", "userspace")


def paced_by(pacing: str, capacity: Capacity) -> str:
    """What stands in the records: none where the link is unlimited."""
    return "none" if math.isinf(min(capacity.bytes_per_s)) else pacing


class Pacing:
    """The sender's part during one run: a transport and a link to send with. pacing: one of PACINGS; tbf is done outside.

    transport: one of abkt.transfer.transports.registry; where the kernel holds bytes back it is TCP.
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
        """Raises what setting a rate raised."""
        self._following.close()


@contextmanager
def shaped(namespaces: Namespaces | None, pacing: str, capacity: Capacity, origin_s: float) -> Iterator[dict[str, Any]]:
    """The frontend's part: while the run goes on, the links of its namespaces follow the capacity. Yields facts, complete at its end.

    changes: of the rate; late_s: the latest of them. Raises ClusterError if a rate cannot be set.
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

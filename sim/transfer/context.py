"""The objects and settings that all transfers of a cluster share.

Not modelled: pairs of nodes with another transport than the rest of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abkt.policy.view import BitratePolicy
from abkt.records import SLO, TransferRecord
from sim.job import Job
from sim.network.flows import Link, Network
from sim.timers import Timers
from sim.transfer.transport import TransportModel

if TYPE_CHECKING:
    from sim.transfer.sender import SenderProcess


@dataclass(eq=False, slots=True)
class TransferContext:
    """Shared by all transfers of a cluster.

    bitrate: makes the bitrate policy of a pair. unused: one such policy, which all pairs share until their first transfer. ended(record):
    called with each transfer's record once it is final. failed(job, reason): called with a request whose transfer has failed. delay_s:
    propagation delay between nodes, each way. idle: sender processes that no pair uses. least_calls: calls of a coded transfer, however
    small. prefill_tp: ranks of a prefill node. fabric: the link that all transfers share, if there is one.
    """

    clock: Timers
    network: Network
    slo: SLO
    bitrate: Callable[[], BitratePolicy]
    ended: Callable[[TransferRecord], None]
    failed: Callable[[Job, str], None]
    transport: TransportModel = TransportModel()  # noqa: RUF009  # frozen
    usd_per_gb: float = 0.0
    delay_s: float = 0.0
    fabric: tuple[Link, ...] = ()
    unused: BitratePolicy = field(init=False)
    idle: list[SenderProcess] = field(default_factory=list)
    least_calls: int = field(init=False)
    prefill_tp: int = field(init=False)

    def __post_init__(self) -> None:
        self.unused = self.bitrate()
        self.least_calls, self.prefill_tp = self.transport.coded_calls(0.0), self.transport.prefill_tp

"""A request on its way through the cluster: where it goes, and the moments and sums its record is made of.

Not modelled: a request that its client gives up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abkt.policy.view import Decision, TransferView
from abkt.records import RequestRecord
from sim.workload import Request

if TYPE_CHECKING:
    from sim.transfer import Pair


@dataclass(slots=True, eq=False, repr=False)
class Job:
    """promised_s: what the prefill queue counts for it. share_s, worked_s: those of the decode node when it joined the batch."""

    request: Request
    pair: Pair
    record: RequestRecord
    prefill_s: float = field(init=False)
    promised_s: float = field(init=False)
    prefill_blocks: int = field(init=False)
    decode_blocks: int = field(init=False)
    prefill_start_s: float = field(init=False)
    encode_start_s: float = field(init=False)
    decision: Decision = field(init=False)
    view: TransferView = field(init=False)  # that the decision was made on
    expected_bytes: float = field(init=False)
    wire_start_s: float = field(init=False)
    reserved_s: float = field(init=False)
    wire_bits: float = field(init=False)  # of a stream, mean bits per value that arrived
    expand_start_s: float = field(init=False)
    decode_start_s: float = field(init=False)
    share_s: float = field(init=False)
    worked_s: float = field(init=False)

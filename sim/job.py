"""A request on its way through the cluster: where it is, and the moments its record is made of.

Not modelled: a request that its client gives up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.policy.view import Decision
from abkt.records import RequestRecord
from sim.workload import Request

if TYPE_CHECKING:
    from sim.transfer import Pair


class Job:
    __slots__ = (
        "decision",
        "decode_blocks",
        "decode_start_s",
        "encode_start_s",
        "expand_start_s",
        "expected_bytes",
        "pair",
        "prefill_blocks",
        "prefill_s",
        "prefill_start_s",
        "promised_s",
        "record",
        "request",
        "reserved_s",
        "share_s",
        "wire_bits",
        "wire_start_s",
        "worked_s",
    )

    def __init__(self, request: Request, pair: Pair, record: RequestRecord) -> None:
        self.request = request
        self.pair = pair
        self.record = record
        self.decision: Decision
        self.expected_bytes = 0.0
        self.wire_bits = 0.0  # mean bits per value that arrived; inf: raw

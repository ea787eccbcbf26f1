"""The records of a run, one for each request and each transfer. This is the only module that makes them.

A request that ends early may still be in an iteration, which runs to its end and is charged to the request. So its record is made only when
it is collected. The record of a completed request is made at once.

Not modelled: clocks that differ between nodes; all times are those of the simulation's one clock.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from abkt.policy.view import Curve
from abkt.records import RequestRecord, TransferRecord

if TYPE_CHECKING:
    from sim.job import Job
    from sim.transfer.refinement import Refinement
    from sim.transfer.transfer import SimulatedTransfer


class FinishedRecords:
    """Collects records in order of arrival. `ready`: records whose earlier requests have all ended; the caller empties it."""

    def __init__(self) -> None:
        self.ready: list[RequestRecord] = []
        self._ended: dict[int, RequestRecord | Job] = {}  # by index: ended requests that wait for an earlier one to end
        self._next = 0  # index of the first request that has not ended

    def add(self, job: Job) -> None:
        """The request has ended."""
        self._ended[job.index] = request_record(job) if job.outcome == "completed" else job

    def collect(self) -> list[RequestRecord]:
        """Move the records that are ready to `ready`, and return it."""
        while (ended := self._ended.pop(self._next, None)) is not None:
            self.ready.append(ended if isinstance(ended, RequestRecord) else request_record(ended))
            self._next += 1
        return self.ready


def request_record(job: Job) -> RequestRecord:
    """The record of a request that has ended. Only completed requests have exposed times."""
    request, prompt, transfer, decoding = job.request, job.prompt, job.transfer, job.decoding
    record = RequestRecord(
        request.request_id,
        request.isl,
        request.osl,
        request.arrival_s,
        prefill_busy_s=prompt.busy_s,
        encode_busy_s=prompt.encode_busy_s,
        wire_busy_s=transfer.busy_s,
        expand_busy_s=decoding.expand_busy_s,
        decode_busy_s=decoding.busy_s,
        prefill_token_s=prompt.token_s,
        decode_token_s=decoding.token_s,
        finish_s=job.finish_s,
        prefill_node=job.prefill_node,
        decode_node=job.decode_node,
        rate=transfer.bits_per_value,
        wire_bytes=transfer.wire_bytes,
        raw_bytes=transfer.raw_bytes,
        distortion_start=job.distortion_start,
        distortion_final=job.distortion_final,
        distortion_token_weighted=job.distortion_token_weighted,
        cached_tokens=prompt.cached_tokens,
        preemptions=decoding.preemptions,
        retries=job.retries,
        cost_usd=job.cost_usd,
        extrapolated=job.extrapolated,
        outcome=job.outcome,
        reason=job.reason,
    )
    if job.outcome == "completed":
        record.expose(prompt.start_s, prompt.token_s, transfer.ready_s, transfer.arrived_s, decoding.start_s)
    return record


def failed_transfer(transfer: SimulatedTransfer, finish_s: float, reason: str) -> TransferRecord:
    """The record of a transfer that has failed."""
    return TransferRecord(
        transfer.job.request.request_id,
        transfer.pair.source.name,
        transfer.pair.target.name,
        transfer.start_s,
        finish_s=finish_s,
        mode=transfer.job.transfer.decision.mode,
        price=transfer.price,
        estimate_bytes_per_s=transfer.estimate_bytes_per_s,
        wire_bytes=round(transfer.flow.sent_bytes),
        raw_bytes=transfer.expected.raw_bytes,
        retries=transfer.retries,
        resumes=transfer.retries,
        pacing="simulated",
        outcome="failed",
        reason=reason,
    )


def delivered_transfer(transfer: SimulatedTransfer, refinement: Refinement | None = None) -> TransferRecord:
    """The record of a transfer that was delivered. refinement: its refinement, which has ended; None if there was none."""
    decision, streamed = transfer.job.transfer.decision, transfer.streamed
    refine_bytes, refine_calls, refine_finish_s, distortion_final = 0, 0, math.nan, transfer.distortion
    if refinement is not None:
        refine_bytes, refine_calls, refine_finish_s = refinement.wire_bytes, refinement.wire_calls, refinement.finish_s
        distortion_final = refinement.distortion_final
    wire_bytes = transfer.wire_bytes + refine_bytes
    return TransferRecord(
        transfer.job.request.request_id,
        transfer.pair.source.name,
        transfer.pair.target.name,
        transfer.start_s,
        finish_s=transfer.finish_s,
        mode=decision.mode,
        order=decision.order if streamed else "",
        depth_bits=decision.depth_bits if streamed else 0,
        cut=transfer.cut if streamed else 0,
        slope=_slope(transfer.full, transfer.cut) if streamed else math.nan,
        price=transfer.price,
        estimate_bytes_per_s=transfer.estimate_bytes_per_s,
        calls=transfer.calls_made + refine_calls,
        wire_bytes=wire_bytes,
        raw_bytes=transfer.expected.raw_bytes,
        bits_per_value=transfer.bits_per_value(wire_bytes),
        retries=transfer.retries,
        resumes=transfer.retries,
        distortion_start=transfer.distortion,
        distortion_final=distortion_final,
        refine_bytes=refine_bytes,
        refine_finish_s=refine_finish_s,
        pacing="simulated",
        coder=decision.coder if streamed else "",
    )


def _slope(curve: Curve, cut: int) -> float:
    """Distortion that the last band before the cut removed, per byte of that band; NaN at cut 0, which has no band."""
    if cut == 0:
        return math.nan
    return (curve.distortion[cut - 1] - curve.distortion[cut]) / (curve.bytes[cut] - curve.bytes[cut - 1])

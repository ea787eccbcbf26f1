"""Records of a request and its transfers, made from the reports of the two workers."""

from __future__ import annotations

from abkt.records import RequestRecord, TransferRecord
from abkt.serve.frontend.attempt import Attempt
from abkt.serve.reports import AttemptFailed, TransferSent
from abkt.spec import ModelSpec


def request_record(attempt: Attempt, model: ModelSpec, compute: str = "real") -> RequestRecord:
    """The request record of a complete attempt."""
    prompt, first = attempt.prompt, attempt.prefilled
    assert first is not None
    record = RequestRecord(prompt.request_id, prompt.isl, len(attempt.outputs()), prompt.arrival_s, compute=compute)
    record.prefill_node = attempt.source
    record.prefill_busy_s = first.prefill_end_s - first.prefill_start_s
    record.prefill_token_s = first.prefill_end_s
    if first.transfer is None:
        record.decode_token_s = record.finish_s = first.prefill_end_s
        record.expose(first.prefill_start_s, *[record.finish_s] * 4)
        return record
    plan, last, sent = first.transfer, attempt.finished, attempt.sent
    assert last is not None
    record.raw_bytes = model.kv_bytes(prompt.isl)
    record.encode_busy_s = plan.encode_busy_s
    record.prefill_busy_s -= plan.encode_busy_s - (plan.encode_end_s - first.prefill_end_s)  # encoding during prefill
    record.decode_node = attempt.destination
    record.expand_busy_s = last.expand_busy_s
    record.decode_busy_s = last.decode_busy_s
    record.decode_token_s = last.decode_token_s
    record.finish_s = last.finish_s
    record.expose(
        prefill_start_s=first.prefill_start_s,
        encode_start_s=first.prefill_end_s,
        wire_start_s=plan.encode_end_s,
        expand_start_s=max(last.received_s, plan.encode_end_s),
        decode_start_s=last.expand_end_s,
    )
    if sent:
        record.wire_busy_s = sent.wire_busy_s
        record.wire_bytes = sent.wire_bytes + last.refine_bytes
        record.rate = 8 * record.wire_bytes / (prompt.isl * model.values_per_token)
        record.distortion_start = last.distortion_start
        record.distortion_final = last.distortion_final
        record.distortion_token_weighted = last.distortion_token_weighted
    else:
        failed = attempt.failed
        assert failed is not None
        record.wire_bytes = failed.broken.wire_bytes if failed.broken else 0
        record.reason = f"the output tokens arrived, but the transfer's figures did not: {failed.reason}"
    return record


def transfer_record(attempt: Attempt, model: ModelSpec) -> TransferRecord:
    """The transfer record of a complete attempt. Refinement bytes count if they arrived before the request ended."""
    prompt, first, sent, last = attempt.prompt, attempt.prefilled, attempt.sent, attempt.finished
    assert first is not None
    assert first.transfer is not None
    assert sent is not None
    assert last is not None
    plan, wire_bytes = first.transfer, sent.wire_bytes + last.refine_bytes
    return TransferRecord(
        request_id=prompt.request_id,
        source=attempt.source,
        destination=attempt.destination,
        start_s=sent.granted_s,
        finish_s=sent.last_byte_s,
        mode=plan.mode,
        order=plan.order,
        depth_bits=plan.depth_bits,
        cut=sent.cut,
        price=plan.price,
        estimate_bytes_per_s=plan.estimate_bytes_per_s,
        calls=sent.calls,
        wire_bytes=wire_bytes,
        raw_bytes=model.kv_bytes(prompt.isl),
        bits_per_value=8 * wire_bytes / (prompt.isl * model.values_per_token),
        retries=sent.retries,
        resumes=sent.resumes,
        distortion_start=last.distortion_start,
        distortion_final=last.distortion_final,
        refine_bytes=last.refine_bytes,
        refine_finish_s=last.refine_finish_s,
        pacing=plan.pacing,
        coder=plan.coder,
    )


def failed_transfer(attempt: Attempt, ended: TransferSent | AttemptFailed, model: ModelSpec) -> TransferRecord | None:
    """The transfer record of an abandoned attempt; None if its transfer had not begun.

    ended: the prefill worker's report on the transfer's end; it is TransferSent if the decode worker failed later.
    """
    if isinstance(ended, TransferSent):
        plan = attempt.prefilled.transfer if attempt.prefilled else None
        mode, pacing = (plan.mode, plan.pacing) if plan else ("", "")
        start_s, finish_s, wire_bytes = ended.granted_s, ended.acked_s, ended.wire_bytes
        reason = "the KV was sent, but the decode worker lost it"
    elif ended.broken:
        mode, pacing, wire_bytes = ended.broken.mode, ended.broken.pacing, ended.broken.wire_bytes
        start_s, finish_s, reason = ended.broken.granted_s, ended.broken.ended_s, ended.reason
    else:
        return None
    return TransferRecord(
        request_id=attempt.prompt.request_id,
        source=attempt.source,
        destination=attempt.destination,
        start_s=start_s,
        finish_s=finish_s,
        mode=mode,
        wire_bytes=wire_bytes,
        raw_bytes=model.kv_bytes(attempt.prompt.isl),
        pacing=pacing,
        outcome="failed",
        reason=reason,
    )

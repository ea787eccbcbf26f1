"""What the two workers say of a request, put together to its records."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from abkt.records import RequestRecord, TransferRecord
from abkt.serve.control import Message
from abkt.serve.frontend.prompt import Prompt
from abkt.spec import ModelSpec


@dataclass(slots=True)
class RequestEvents:
    """One try of a request. prompt: as this try has it, so with the tokens that an earlier one produced. source, destination: the workers.

    prefilled, sent: of the prefill worker; finished: of the decode worker; failed: of whoever noticed.
    """

    prompt: Prompt
    source: str = "p0"
    destination: str = "d0"
    said: dict[str, Message] = field(default_factory=dict)

    def add(self, message: Message) -> None:
        self.said[message["event"]] = message

    @property
    def single(self) -> bool:
        """The first token was the last, so nothing was transferred."""
        return bool(self.said.get("prefilled", {}).get("last"))

    @property
    def complete(self) -> bool:
        """The tokens are there, and what was sent is known, as far as it will be."""
        return self.single or ("finished" in self.said and not self.said.keys().isdisjoint({"sent", "failed"}))

    @property
    def transfer(self) -> bool:
        return "sent" in self.said

    @property
    def refinable(self) -> bool:
        """Better values may have followed the start of decoding."""
        return bool(self.said.get("sent", {}).get("refining"))

    def outputs(self) -> list[int]:
        if self.single:
            return [self.said["prefilled"]["token"]]
        return list(self.said.get("finished", {}).get("tokens", []))

    def margins(self) -> list[float]:
        """Of each output."""
        return [self.said["prefilled"]["margin"], *self.said.get("finished", {}).get("margins", [])]


def request_record(parts: RequestEvents, model: ModelSpec, compute: str = "real") -> RequestRecord:
    """Of a complete try."""
    prompt, first = parts.prompt, parts.said["prefilled"]
    record = RequestRecord(prompt.request_id, prompt.isl, len(parts.outputs()), prompt.arrival_s, compute=compute)
    record.prefill_node = parts.source
    record.raw_bytes = prompt.isl * model.kv_bytes_per_token
    record.prefill_busy_s = first["prefill_end_s"] - first["prefill_start_s"]
    if not parts.single:
        record.encode_busy_s = first["encode_busy_s"]
        record.prefill_busy_s -= record.encode_busy_s - (first["encode_end_s"] - first["prefill_end_s"])  # what was done within it
    record.prefill_token_s = first["prefill_end_s"]
    if parts.single:
        record.decode_token_s = record.finish_s = first["prefill_end_s"]
        record.raw_bytes = 0
        record.expose(first["prefill_start_s"], *[record.finish_s] * 4)
        return record
    last, sent = parts.said["finished"], parts.said.get("sent")
    record.decode_node = parts.destination
    record.expand_busy_s = last["expand_busy_s"]
    record.decode_busy_s = last["decode_busy_s"]
    record.decode_token_s = last["decode_token_s"]
    record.finish_s = last["finish_s"]
    record.expose(
        prefill_start_s=first["prefill_start_s"],
        encode_start_s=first["prefill_end_s"],
        wire_start_s=first["encode_end_s"],
        expand_start_s=max(last["received_s"], first["encode_end_s"]),
        decode_start_s=last["expand_end_s"],
    )
    if sent:
        record.wire_busy_s = sent["wire_busy_s"]
        record.wire_bytes = sent["wire_bytes"] + last["refine_bytes"]
        record.rate = 8 * record.wire_bytes / (prompt.isl * model.values_per_token)
        record.distortion_start = last["distortion_start"]
        record.distortion_final = last["distortion_final"]
        record.distortion_token_weighted = last["distortion_token_weighted"]
    else:
        record.wire_bytes = parts.said["failed"].get("wire_bytes", 0)
        record.reason = f"its tokens came, its transfer's figures did not: {parts.said['failed']['reason']}"
    return record


def failed_transfer(parts: RequestEvents, message: Message, model: ModelSpec) -> TransferRecord | None:
    """Of a try that came to nothing: what the prefill worker said of its end, `sent` where only the decode worker failed. None: it had not
    begun."""
    if "wire_bytes" not in message:
        return None
    prompt, ended_s = parts.prompt, message.get("acked_s", math.nan)
    of: Message = {"mode": "", "pacing": "", "ended_s": ended_s, **parts.said.get("prefilled", {}), **message}
    return TransferRecord(
        request_id=prompt.request_id,
        source=parts.source,
        destination=parts.destination,
        start_s=of["granted_s"],
        finish_s=of["ended_s"],
        mode=of["mode"],
        wire_bytes=of["wire_bytes"],
        raw_bytes=prompt.isl * model.kv_bytes_per_token,
        pacing=of["pacing"],
        outcome="failed",
        reason=of.get("reason", "what had been sent was lost with its receiver"),
    )


def transfer_record(parts: RequestEvents, model: ModelSpec) -> TransferRecord:
    """Of a complete try. What followed its start is counted where it arrived: what was on its way when the request ended is left out."""
    prompt, first, sent, last = parts.prompt, parts.said["prefilled"], parts.said["sent"], parts.said["finished"]
    wire_bytes = sent["wire_bytes"] + last["refine_bytes"]
    return TransferRecord(
        request_id=prompt.request_id,
        source=parts.source,
        destination=parts.destination,
        start_s=sent["granted_s"],
        finish_s=sent["last_byte_s"],
        mode=first["mode"],
        order=first["order"],
        depth_bits=first["depth_bits"],
        cut=sent["cut"],
        price=first["price"],
        estimate_bytes_per_s=first["estimate_bytes_per_s"] or math.nan,
        calls=sent["calls"],
        wire_bytes=wire_bytes,
        raw_bytes=prompt.isl * model.kv_bytes_per_token,
        bits_per_value=8 * wire_bytes / (prompt.isl * model.values_per_token),
        retries=sent["retries"],
        resumes=sent["resumes"],
        distortion_start=last["distortion_start"],
        distortion_final=last["distortion_final"],
        refine_bytes=last["refine_bytes"],
        refine_finish_s=math.nan if last["refine_finish_s"] is None else last["refine_finish_s"],
        pacing=first["pacing"],
    )

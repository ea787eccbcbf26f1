"""What the two workers say of a request, put together to its records."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from abkt.records import RequestRecord, TransferRecord
from abkt.serve.control import Message
from abkt.serve.prompt import Prompt
from abkt.spec import ModelSpec


@dataclass(slots=True)
class Parts:
    """source: the prefill worker. prefilled, sent: of the prefill worker; finished: of the decode worker; failed: of whoever noticed."""

    prompt: Prompt
    source: str = "p0"
    said: dict[str, Message] = field(default_factory=dict)

    def add(self, message: Message) -> None:
        self.said[message["event"]] = message

    @property
    def complete(self) -> bool:
        return "failed" in self.said or {"prefilled", "sent", "finished"} <= self.said.keys()

    @property
    def transfer(self) -> bool:
        return "sent" in self.said

    def outputs(self) -> list[int]:
        return list(self.said.get("finished", {}).get("tokens", []))


def request_record(parts: Parts, model: ModelSpec) -> RequestRecord:
    prompt = parts.prompt
    record = RequestRecord(prompt.request_id, prompt.isl, prompt.osl, prompt.arrival_s, compute="real")
    record.prefill_node, record.decode_node = parts.source, "d0"
    record.raw_bytes = prompt.isl * model.kv_bytes_per_token
    if "failed" in parts.said:
        record.outcome, record.reason = "failed", str(parts.said["failed"]["reason"])
        return record
    first, sent, last = parts.said["prefilled"], parts.said["sent"], parts.said["finished"]
    record.prefill_busy_s = first["prefill_end_s"] - first["prefill_start_s"]
    record.encode_busy_s = first["encode_end_s"] - first["prefill_end_s"]
    record.wire_busy_s = sent["wire_busy_s"]
    record.expand_busy_s = last["expand_busy_s"]
    record.decode_busy_s = last["decode_busy_s"]
    record.prefill_token_s = first["prefill_end_s"]
    record.decode_token_s = last["decode_token_s"]
    record.finish_s = last["finish_s"]
    record.expose(
        prefill_start_s=first["prefill_start_s"],
        encode_start_s=first["prefill_end_s"],
        wire_start_s=first["encode_end_s"],
        expand_start_s=max(last["received_s"], first["encode_end_s"]),
        decode_start_s=last["expand_end_s"],
    )
    record.wire_bytes = sent["wire_bytes"]
    record.rate = 8 * sent["wire_bytes"] / (prompt.isl * model.values_per_token)
    record.distortion_start = record.distortion_final = record.distortion_token_weighted = sent["distortion"]
    return record


def transfer_record(parts: Parts, model: ModelSpec) -> TransferRecord:
    prompt, first, sent = parts.prompt, parts.said["prefilled"], parts.said["sent"]
    return TransferRecord(
        request_id=prompt.request_id,
        source=parts.source,
        destination="d0",
        start_s=sent["granted_s"],
        finish_s=sent["last_byte_s"],
        mode=first["mode"],
        order=first["order"],
        depth_bits=first["depth_bits"],
        cut=sent["cut"],
        price=first["price"],
        estimate_bytes_per_s=first["estimate_bytes_per_s"] or math.nan,
        calls=sent["calls"],
        wire_bytes=sent["wire_bytes"],
        raw_bytes=prompt.isl * model.kv_bytes_per_token,
        bits_per_value=8 * sent["wire_bytes"] / (prompt.isl * model.values_per_token),
        retries=sent["retries"],
        resumes=sent["resumes"],
        distortion_start=sent["distortion"],
        distortion_final=sent["distortion"],
        pacing=first["pacing"],
    )

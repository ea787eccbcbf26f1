"""A request that the frontend has open, and the terms of the run that it belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from abkt.capacity import Capacity
from abkt.profile.schema import Profile
from abkt.records import RequestRecord, TransferRecord
from abkt.serve.control import Message
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.frontend.records import RequestEvents, failed_transfer, request_record, transfer_record
from abkt.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all requests of a run. bitrate: a policy's configuration. most_tokens: of one request, prompt and output; refusal:
    what to say of more. replace: start another worker for one that has died. longest: the prompt whose KV is sent, where compute is paced.
    """

    bitrate: Mapping[str, Any]
    network: Capacity
    pacing: str
    slo_ttft_s: float
    profile: Profile | None
    compute: str = "real"
    most_tokens: int = 0
    refusal: str = ""
    replace: bool = False
    longest: tuple[int, ...] = ()


@dataclass(slots=True)
class OpenRequest:
    """A request that is open, and what came of it. tokens, margins: of the outputs, as far as they are known. troubles: of earlier tries.

    on_tokens: told new tokens of a streamed one. record, transfer: when it is done. failed: transfers of earlier tries, as far as their
    senders have told of them by then.
    """

    prompt: Prompt
    on_tokens: Callable[[list[int]], None] | None = None
    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    parts: RequestEvents | None = None
    number: int = -1
    record: RequestRecord | None = None
    transfer: TransferRecord | None = None
    failed: list[TransferRecord] = field(default_factory=list)

    @property
    def wire_bytes(self) -> int:
        """Of all its tries."""
        return (self.record.wire_bytes if self.record else 0) + sum(transfer.wire_bytes for transfer in self.failed)

    def stream(self, tokens: list[int]) -> None:
        """They are new."""
        if self.prompt.stream and tokens:
            self.tokens += tokens
            if self.on_tokens:
                self.on_tokens(tokens)

    def rest(self) -> Prompt:
        """What the next try has to do: all of it, or what is left behind tokens that were given out already."""
        given = self.tokens if self.prompt.stream else []
        return replace(self.prompt, tokens=(*self.prompt.tokens, *given), osl=self.prompt.osl - len(given)) if given else self.prompt

    def complete(self, parts: RequestEvents, model: ModelSpec, compute: str) -> RequestRecord:
        """The try that gave it its last token. The record's times are those of this try; its queue began when the request arrived."""
        before, outputs = parts.prompt.isl - self.prompt.isl, parts.outputs()  # tokens of earlier tries, and of this one
        self.stream(outputs[len(self.tokens) - before :])
        self.tokens = [*self.tokens[:before], *outputs]
        self.margins = [*[math.nan] * before, *parts.margins()]
        self.record = record = request_record(parts, model, compute)
        record.isl, record.osl, record.retries = self.prompt.isl, len(self.tokens), len(self.troubles)
        record.reason = "; ".join(filter(None, (*self.troubles, record.reason)))
        self.transfer = transfer_record(parts, model) if parts.transfer else None
        return record

    def lost(self, parts: RequestEvents, ended: Message, model: ModelSpec) -> None:
        """A try came to nothing; ended: what its sender said of that."""
        if transfer := failed_transfer(parts, ended, model):
            self.failed.append(transfer)

    def give_up(self, outcome: str, reason: str, compute: str) -> None:
        prompt = self.prompt
        self.record = RequestRecord(prompt.request_id, prompt.isl, prompt.osl, prompt.arrival_s, compute=compute)
        self.record.outcome, self.record.reason, self.record.retries = outcome, reason, max(0, len(self.troubles) - 1)

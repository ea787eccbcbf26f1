"""A request that the frontend has accepted and not yet answered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from abkt.records import RequestRecord, TransferRecord
from abkt.serve.frontend.attempt import Attempt
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.frontend.records import failed_transfer, request_record, transfer_record
from abkt.serve.reports import AttemptFailed, TransferSent
from abkt.spec import ModelSpec


@dataclass(slots=True)
class OpenRequest:
    """prompt: as it was submitted. on_tokens: told the new tokens of a streamed request. attempt: the present one; None while it waits.

    tokens, margins: of the outputs, as far as they are known. failures: why each earlier attempt failed. record, transfer: made when the
    request is done. failed_transfers: of earlier attempts, as far as their senders have reported them by then.
    """

    prompt: Prompt
    on_tokens: Callable[[list[int]], None] | None = None
    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    attempt: Attempt | None = None
    record: RequestRecord | None = None
    transfer: TransferRecord | None = None
    failed_transfers: list[TransferRecord] = field(default_factory=list)

    @property
    def wire_bytes(self) -> int:
        """Of all attempts."""
        return (self.record.wire_bytes if self.record else 0) + sum(transfer.wire_bytes for transfer in self.failed_transfers)

    def stream(self, tokens: list[int]) -> None:
        """These tokens are new."""
        if self.prompt.stream and tokens:
            self.tokens += tokens
            if self.on_tokens:
                self.on_tokens(tokens)

    def remaining(self) -> Prompt:
        """What the next attempt has to do: all of it, or what follows the tokens that were streamed already."""
        given = self.tokens if self.prompt.stream else []
        return replace(self.prompt, tokens=(*self.prompt.tokens, *given), osl=self.prompt.osl - len(given)) if given else self.prompt

    def complete(self, attempt: Attempt, model: ModelSpec, compute: str) -> RequestRecord:
        """This attempt has made the last token. The record's times are those of this attempt; its queue began when the request arrived."""
        before, outputs = attempt.prompt.isl - self.prompt.isl, attempt.outputs()  # tokens of earlier attempts, and of this one
        self.stream(outputs[len(self.tokens) - before :])
        self.tokens = [*self.tokens[:before], *outputs]
        self.margins = [*[math.nan] * before, *attempt.margins()]
        self.record = record = request_record(attempt, model, compute)
        record.isl, record.osl, record.retries = self.prompt.isl, len(self.tokens), len(self.failures)
        record.reason = "; ".join(filter(None, (*self.failures, record.reason)))
        self.transfer = transfer_record(attempt, model) if attempt.sent else None
        return record

    def lost(self, attempt: Attempt, ended: TransferSent | AttemptFailed, model: ModelSpec) -> None:
        """An attempt was given up. ended: how its sender reported the transfer's end."""
        if transfer := failed_transfer(attempt, ended, model):
            self.failed_transfers.append(transfer)

    def give_up(self, outcome: str, reason: str, compute: str) -> None:
        prompt = self.prompt
        self.record = RequestRecord(prompt.request_id, prompt.isl, prompt.osl, prompt.arrival_s, compute=compute)
        self.record.outcome, self.record.reason, self.record.retries = outcome, reason, max(0, len(self.failures) - 1)

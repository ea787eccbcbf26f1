"""A request that the frontend has accepted but not yet answered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from abkt.records import RequestRecord, TransferRecord
from abkt.serve.engine.generation import TokenLogprobs
from abkt.serve.frontend.attempt import Attempt
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.frontend.records import failed_transfer, request_record, transfer_record
from abkt.serve.reports import AttemptFailed, TransferSent
from abkt.spec import ModelSpec


@dataclass(slots=True)
class OpenRequest:
    """One open request.

    prompt: the request as submitted. on_tokens: called with the new tokens of a streamed request and the logprobs of each. attempt: the
    current attempt; None while the request waits. tokens, margins, logprobs: the output tokens known so far, and of each its margin and
    logprobs. ended: the client wants no further token. failures: why each earlier attempt failed.
    record, transfer: the records, made when the request is done. failed_transfers: records of earlier attempts' transfers, if their senders
    have reported them by then.
    """

    prompt: Prompt
    on_tokens: Callable[[list[int], list[TokenLogprobs]], None] | None = None
    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    ended: bool = False
    failures: list[str] = field(default_factory=list)
    attempt: Attempt | None = None
    record: RequestRecord | None = None
    transfer: TransferRecord | None = None
    failed_transfers: list[TransferRecord] = field(default_factory=list)

    @property
    def wire_bytes(self) -> int:
        """Wire bytes of all attempts."""
        return (self.record.wire_bytes if self.record else 0) + sum(transfer.wire_bytes for transfer in self.failed_transfers)

    def stream(self, tokens: list[int], logprobs: list[TokenLogprobs]) -> None:
        """Add new tokens and the logprobs of each, and pass them on."""
        if self.prompt.stream and tokens:
            self.tokens += tokens
            self.logprobs += logprobs
            if self.on_tokens:
                self.on_tokens(tokens, logprobs)

    def decoded(self, token: int, logprobs: TokenLogprobs) -> None:
        """Add a token that the decode worker has streamed. It waits for the first token, whose report comes over another pipe."""
        if self.attempt and self.attempt.prefilled is None:
            self.attempt.early.append((token, logprobs))
        else:
            self.stream([token], [logprobs])

    def remaining(self) -> Prompt:
        """The prompt of the next attempt: the whole request, or its continuation after the tokens that were already streamed."""
        given = self.tokens if self.prompt.stream else []
        return replace(self.prompt, tokens=(*self.prompt.tokens, *given), osl=self.prompt.osl - len(given)) if given else self.prompt

    def complete(self, attempt: Attempt, model: ModelSpec, compute: str) -> RequestRecord:
        """End the request after a successful attempt. The record holds this attempt's times, but its queue stage begins at arrival."""
        before, outputs = attempt.prompt.isl - self.prompt.isl, attempt.outputs()  # earlier attempts' tokens (a count), and this one's
        logprobs = attempt.logprobs()
        self.stream(outputs[len(self.tokens) - before :], logprobs[len(self.tokens) - before :])
        self.tokens = [*self.tokens[:before], *outputs]
        self.logprobs = [*self.logprobs[:before], *logprobs]
        self.margins = [*[math.nan] * before, *attempt.margins()]
        self.record = record = request_record(attempt, model, compute)
        record.isl, record.osl, record.retries = self.prompt.isl, len(self.tokens), len(self.failures)
        record.reason = "; ".join(filter(None, (*self.failures, record.reason)))
        self.transfer = transfer_record(attempt, model) if attempt.sent else None
        return record

    def lost(self, attempt: Attempt, ended: TransferSent | AttemptFailed, model: ModelSpec) -> None:
        """Record the transfer of an abandoned attempt. ended: the sender's report on the transfer's end."""
        if transfer := failed_transfer(attempt, ended, model):
            self.failed_transfers.append(transfer)

    def give_up(self, outcome: str, reason: str, compute: str) -> None:
        prompt = self.prompt
        self.record = RequestRecord(prompt.request_id, prompt.isl, prompt.osl, prompt.arrival_s, compute=compute)
        self.record.outcome, self.record.reason, self.record.retries = outcome, reason, max(0, len(self.failures) - 1)

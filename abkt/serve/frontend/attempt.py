"""One attempt at a request: the two workers that serve it, and their reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from abkt.serve.engine.generation import TokenLogprobs
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.reports import AttemptFailed, AttemptFinished, AttemptReport, Prefilled, TransferSent


@dataclass(slots=True)
class Attempt:
    """One attempt at a request.

    attempt_id: unique number of the attempt. prompt: what this attempt computes; it includes tokens that an earlier attempt has streamed.
    source, destination: the prefill and the decode worker. prefilled, sent: reports of the source. finished: report of the destination.
    failed: report of either worker. early: tokens that the destination streamed before the source's report came, which has the first one.
    """

    attempt_id: int
    prompt: Prompt
    source: str
    destination: str
    prefilled: Prefilled | None = None
    sent: TransferSent | None = None
    failed: AttemptFailed | None = None
    finished: AttemptFinished | None = None
    early: list[tuple[int, TokenLogprobs]] = field(default_factory=list)

    def add(self, report: AttemptReport) -> None:
        match report:
            case Prefilled():
                self.prefilled = report
            case TransferSent():
                self.sent = report
            case AttemptFailed():
                self.failed = report
            case AttemptFinished():
                self.finished = report

    @property
    def workers(self) -> tuple[str, str]:
        return self.source, self.destination

    @property
    def single_token(self) -> bool:
        """Whether the first output token was the last one, so that no KV was transferred."""
        return self.prefilled is not None and self.prefilled.transfer is None

    @property
    def complete(self) -> bool:
        """Whether all output tokens are there and the source has reported the end of its transfer."""
        return self.single_token or (self.finished is not None and (self.sent is not None or self.failed is not None))

    @property
    def refinable(self) -> bool:
        """Whether better values may have arrived after decoding began."""
        return self.sent is not None and self.sent.refining

    def outputs(self) -> list[int]:
        if self.single_token:
            assert self.prefilled is not None
            return [self.prefilled.token]
        return list(self.finished.tokens) if self.finished else []

    def margins(self) -> list[float]:
        """The margin of each output token; see Choice."""
        assert self.prefilled is not None
        return [self.prefilled.margin, *(self.finished.margins if self.finished else ())]

    def logprobs(self) -> list[TokenLogprobs]:
        """The logprobs of each output token; empty ones if the request does not ask for them."""
        assert self.prefilled is not None
        later = self.finished.logprobs if self.finished else ()
        return [self.prefilled.logprobs, *(later or [()] * (len(self.outputs()) - 1))]

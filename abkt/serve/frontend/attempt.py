"""One attempt at a request: the two workers it is placed on, and what they have reported of it."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.serve.frontend.prompt import Prompt
from abkt.serve.reports import AttemptFailed, AttemptFinished, AttemptReport, Prefilled, TransferSent


@dataclass(slots=True)
class Attempt:
    """attempt_id: its number, which no other attempt has. prompt: of this attempt, so with tokens that an earlier one has streamed.

    source, destination: the prefill and the decode worker. prefilled, sent: reported by the source; finished: by the destination; failed:
    by either.
    """

    attempt_id: int
    prompt: Prompt
    source: str
    destination: str
    prefilled: Prefilled | None = None
    sent: TransferSent | None = None
    failed: AttemptFailed | None = None
    finished: AttemptFinished | None = None

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
        """The first output token was the last one, so nothing was transferred."""
        return self.prefilled is not None and self.prefilled.transfer is None

    @property
    def complete(self) -> bool:
        """The output tokens are there, and the source has said what became of its transfer."""
        return self.single_token or (self.finished is not None and (self.sent is not None or self.failed is not None))

    @property
    def refinable(self) -> bool:
        """Better values may have followed the start of decoding."""
        return self.sent is not None and self.sent.refining

    def outputs(self) -> list[int]:
        if self.single_token:
            assert self.prefilled is not None
            return [self.prefilled.token]
        return list(self.finished.tokens) if self.finished else []

    def margins(self) -> list[float]:
        """Of each output token; see Choice."""
        assert self.prefilled is not None
        return [self.prefilled.margin, *(self.finished.margins if self.finished else ())]

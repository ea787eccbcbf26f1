"""A request that a decode worker is decoding, and its report after the last token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.generation import Generation, TokenLogprobs
from abkt.serve.engine.sampling import Choice
from abkt.serve.reports import AttemptFinished
from abkt.serve.worker.refining import KVQuality


@dataclass(slots=True)
class RunningRequest:
    """One running request. table: its blocks. row: the view of them that attention uses. tokens: its output tokens so far; the first is the
    prefill worker's. quality: distortion of its KV. ended: its client wants no further token. Times are on CLOCK_MONOTONIC."""

    attempt_id: int
    generation: Generation
    table: list[int]
    row: SequenceRow
    tokens: list[int]
    received_s: float
    quality: KVQuality
    expand_busy_s: float = 0.0
    expand_end_s: float = 0.0
    decode_token_s: float = 0.0
    decode_busy_s: float = 0.0
    margins: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    ended: bool = False

    @property
    def done(self) -> bool:
        return self.ended or self.generation.ends(self.tokens)

    @property
    def tokens_left(self) -> int:
        return self.generation.osl - len(self.tokens)

    def decoded(self, choice: Choice, start_s: float, end_s: float) -> None:
        """Add the token of one iteration."""
        self.decode_token_s = self.decode_token_s or end_s
        self.decode_busy_s += end_s - start_s
        self.tokens.append(choice.token)
        self.margins.append(choice.margin)
        if self.generation.sampling.logprobs >= 0:
            self.logprobs.append(choice.logprobs)
        self.quality.decoded()

    def finished(self, origin_s: float, finish_s: float) -> AttemptFinished:
        """The report after the last token. origin_s: time 0 of the run on CLOCK_MONOTONIC."""
        quality = self.quality
        return AttemptFinished(
            self.attempt_id,
            received_s=self.received_s - origin_s,
            expand_end_s=self.expand_end_s - origin_s,
            expand_busy_s=self.expand_busy_s,
            decode_token_s=(self.decode_token_s or finish_s) - origin_s,
            decode_busy_s=self.decode_busy_s,
            finish_s=finish_s - origin_s,
            tokens=tuple(self.tokens),
            margins=tuple(self.margins),
            distortion_start=quality.start,
            distortion_final=quality.distortion,
            distortion_token_weighted=quality.token_weighted,
            swaps=tuple(quality.swaps),
            refine_bytes=quality.refine_bytes,
            refine_finish_s=quality.refine_end_s - origin_s if quality.refine_bytes else math.nan,
            logprobs=tuple(self.logprobs),
        )

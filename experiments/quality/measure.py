"""The effect of a codec on a model: the same continuation is scored after KV that was transferred and after KV that was not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from abkt.codec.importance import Importance
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.engine import Engine
from experiments.quality.dropping import kept_logits
from experiments.quality.methods import Held, Method, RatePoint
from experiments.quality.samples import QualitySample

MOST_LOGITS = 1 << 26  # values of logits in one pass, each of four bytes
REFINED_AFTER = 32  # tokens decoded from the coarse KV before the refined KV replaces it


@dataclass(frozen=True, slots=True)
class QualityOutcome:
    """The figures of one method at one rate on one sample.

    Parameters
    ----------
    nll, raw_nll : negative log-likelihood of the answers, nats per token, after the received KV and after raw KV.
    kl, worst_kl : divergence of the logits from those after raw KV: mean, and mean over the worst 1 % of tokens.
    right, raw_right : share of answers that the model gives itself.
    right_near, right_far : the same for answers whose source is in the nearer and in the farther half of the prompt.
    agreement : share of the continuation's tokens for which the model's choice is the one after raw KV.
    diverged_at : first token of the continuation where the model's choice differs (the length if none does).
    nmse : squared error of KV over its squared deviation from channel means, mean over layers and K, V.
    attention_error : squared error over squared length of the attention output of the last queries, mean over layers.
    distortion : as the codec reports it; nan for codecs that report none.
    right_to_N : share of right answers whose source is at most N tokens back and beyond the previous N; nan where there are none.
    """

    sample: int
    kind: str
    tokens: int
    method: str
    rate: str
    wire_bytes: int
    raw_bytes: int
    nmse: float
    attention_error: float
    nll: float
    raw_nll: float
    kl: float
    worst_kl: float
    right: float
    raw_right: float
    diverged_at: int
    right_near: float
    right_far: float
    distortion: float = float("nan")
    right_to_128: float = float("nan")
    right_to_256: float = float("nan")
    right_to_512: float = float("nan")
    right_to_1024: float = float("nan")
    right_to_2048: float = float("nan")
    agreement: float = float("nan")


DISTANCES = (128, 256, 512, 1024, 2048)


class Bench:
    """One model with memory for the KV of one prompt and for `copies` received copies. tables: the blocks of each copy."""

    def __init__(self, engine: Engine, copies: int = 1) -> None:
        self.engine = engine
        blocks = engine.layout.blocks // (1 + copies)
        self.sent, *self.tables = (list(range(i * blocks, (i + 1) * blocks)) for i in range(1 + copies))
        self.received = self.tables[0]

    def prefill(self, sample: QualitySample) -> Held:
        importance = Importance()
        self.engine.prefill(sample.prompt, self.sent, importance)
        return Held(self.engine.pool, self.sent, len(sample.prompt), importance)

    def logits(self, sample: QualitySample, schedule: Sequence[tuple[int, Callable[[list[int]], object]]]) -> torch.Tensor:
        """Logits of every token of the continuation but the first, which prefill gives: [tokens - 1, vocabulary].

        schedule: (token of the continuation, function that writes the KV used from that token on); the first entry is at token 0.
        """
        row, found, rest = SequenceRow(self.received, len(sample.prompt)), [], list(sample.continuation[:-1])
        for (start, put), stop in zip(schedule, [*(start for start, _ in schedule[1:]), len(rest)], strict=True):
            put(self.received)
            if stop > start:
                found.append(self.engine.score(rest[start:stop], row))
        return torch.cat(found)

    def reference(self, sample: QualitySample, held: Held) -> torch.Tensor:
        """Log-probabilities of the continuation after raw KV, as `logits`. held: the sample's prefill."""

        def put_raw(table: list[int]) -> None:
            held.pool.data[table] = held.pool.data[self.sent]

        return self.logits(sample, [(0, put_raw)]).log_softmax(-1)

    def divergence(self, sample: QualitySample, put: Callable[[list[int]], object], reference: torch.Tensor) -> float:
        """Mean divergence of the continuation after the KV that `put` writes, in nats a token. reference: as the method of this name."""
        return float(divergences(self.logits(sample, [(0, put)]).log_softmax(-1), reference).mean())

    def logits_of_kept(self, sample: QualitySample, point: RatePoint) -> torch.Tensor:
        """As logits, after a method that leaves tokens out."""
        point.put(self.received)
        assert point.kept is not None
        kv = [self.engine.pool.read(self.received, layer, len(sample.prompt)) for layer in range(self.engine.layout.model.layers)]
        return kept_logits(self.engine.model, kv, point.kept, list(sample.continuation[:-1]))

    def rows_for(self, sample: QualitySample) -> int:
        """How many copies to score in one pass: as many as there are, while their logits stay below MOST_LOGITS values."""
        of_row = len(sample.continuation) * (self.engine.layout.model.vocabulary or 1)
        return max(1, min(len(self.tables), MOST_LOGITS // of_row))

    def logits_of(self, sample: QualitySample, rows: int) -> torch.Tensor:
        """As logits, after the KV that lies in the first `rows` tables, in one pass: [rows, tokens - 1, vocabulary]."""
        return self.engine.score_rows(sample.continuation[:-1], [SequenceRow(table, len(sample.prompt)) for table in self.tables[:rows]])

    def outcomes(
        self, index: int, sample: QualitySample, methods: Sequence[Method], answers_only: bool = False
    ) -> Iterator[QualityOutcome]:
        """The outcomes of each method at each of its rates, method after method. The prompt is prefilled once.

        answers_only: leave out, to save time, the squared errors of KV and attention (they are nan then), and the replay of a coarse start
        of the embedded methods that is refined after REFINED_AFTER tokens.
        """
        held = self.prefill(sample)
        layers = held.pool.layout.model.layers
        source = [torch.stack(held.pool.read(self.sent, layer, held.tokens)).double() for layer in range(layers) if not answers_only]
        reference = self.reference(sample, held)
        for method in methods:
            points = list(method.points(held))
            for point in points:
                yield self._outcome(index, sample, held, source, method.name, point.rate, point, [(0, point.put)], reference)
            for coarse, fine in () if answers_only else refinements(points):
                rate = f"{coarse.rate} then {fine.rate}"
                schedule = [(0, coarse.put), (REFINED_AFTER, fine.put)]
                yield self._outcome(index, sample, held, source, method.name, rate, fine, schedule, reference)

    def _outcome(
        self, index: int, sample: QualitySample, held: Held, source: list[torch.Tensor], method: str, rate: str, point: RatePoint,
        schedule: list[tuple[int, Callable[[list[int]], object]]], reference: torch.Tensor,
    ) -> QualityOutcome:  # fmt: skip
        logits = self.logits(sample, schedule) if point.kept is None else self.logits_of_kept(sample, point)
        target = torch.tensor(sample.continuation[1:])
        answers = torch.tensor(sample.answers[1:])
        ours, theirs = logits.log_softmax(-1), reference
        kl = divergences(ours, theirs)
        choice, raw_choice = ours.argmax(-1), theirs.argmax(-1)
        other = (choice != raw_choice).nonzero()
        right, raw_right = choice == target, raw_choice == target
        distance = torch.tensor(sample.distance[1:])
        far = distance > held.tokens // 2
        near = answers & ~far
        worst = kl.sort(descending=True).values[: max(1, len(kl) // 100)]
        received = [torch.stack(held.pool.read(self.received, layer, held.tokens)).double() for layer in range(len(source))]
        by_distance = [_share(right, answers & (distance > low) & (distance <= high)) for low, high in pairwise((0, *DISTANCES))]
        return QualityOutcome(
            index, sample.kind, held.tokens, method, rate, point.wire_bytes, held.tokens * held.pool.layout.model.kv_bytes_per_token,
            nmse(source, received), attention_error(held, source, received),
            float(-ours[answers, target[answers]].mean()), float(-theirs[answers, target[answers]].mean()),
            float(kl.mean()), float(worst.mean()), _share(right, answers), _share(raw_right, answers),
            int(other[0]) if len(other) else len(kl), _share(right, near), _share(right, answers & far), point.distortion,
            *[*by_distance, float((choice == raw_choice).float().mean())],
        )  # fmt: skip


def divergences(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """The divergence of each token's distribution from the true one, in nats. ours, theirs: log-probabilities [..., vocabulary]."""
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def refinements(points: Sequence[RatePoint]) -> list[tuple[RatePoint, RatePoint]]:
    """The two rates of an embedded method that are replayed as start and refinement: the ones nearest to 2 bits and to 4 bits."""
    rated = [p for p in points if p.rate]
    if len(rated) < 3:
        return []
    coarse, fine = (min(rated, key=lambda p: abs(float(p.rate) - bits)) for bits in (2, 4))
    return [(coarse, fine)] if coarse.wire_bytes < fine.wire_bytes else []


def nmse(source: Sequence[torch.Tensor], received: Sequence[torch.Tensor]) -> float:
    """Squared error over squared deviation from channel means. source, received: [kinds, heads, tokens, channels] for each layer.
    nan for no layers."""
    if not source:
        return float("nan")
    parts = []
    for x, y in zip(source, received, strict=True):
        spread = (x - x.mean(2, keepdim=True)).square().sum((1, 2, 3))
        parts.append((x - y).square().sum((1, 2, 3)) / spread.clamp_min(1e-30))
    return float(torch.stack(parts).mean())


def attention_error(held: Held, source: Sequence[torch.Tensor], received: Sequence[torch.Tensor]) -> float:
    """Squared error over squared length of the attention output of the prompt's last queries, mean over layers; nan for no layers."""
    if not source:
        return float("nan")
    found = []
    for layer, (x, y) in enumerate(zip(source, received, strict=True)):
        query, scale = held.importance.queries[layer]
        seen = torch.arange(held.tokens) <= torch.arange(held.tokens - query.shape[1], held.tokens)[:, None]
        a, b = (
            F.scaled_dot_product_attention(query[None].double(), kv[0][None], kv[1][None], seen, scale=scale, enable_gqa=True)
            for kv in (x, y)
        )
        found.append(float((a - b).square().sum() / a.square().sum().clamp_min(1e-30)))
    return float(np.mean(found))


def _share(right: torch.Tensor, counted: torch.Tensor) -> float:
    return float(right[counted].float().mean()) if counted.any() else float("nan")

"""One question answered several times: colocated, after raw KV, and after the KV of each method; with the time of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from abkt.codec.importance import Importance
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.engine import Engine
from experiments.longbench.pair import TransferPair, Transferred
from experiments.longbench.questions import Asked

NAN = float("nan")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


@dataclass(slots=True)
class Answer:
    """A row of the results: one question after the KV of one method.

    Parameters
    ----------
    method : what sent the KV: the name of the bitrate policy, or of a published codec.
    outcome, reason : completed, or failed for a reason; then the other figures are empty.
    prompt_tokens, whole_tokens : tokens of the prompt after and before its middle was cut.
    score, raw_score : of the answer after the method's KV and after raw KV.
    nll, raw_nll : nats per token of the reference answer, without its first token, which prefill gives; nan if it has only one.
    agreement : share of positions where both answers have the same token. diverged_at: the first where they differ, or the length.
    lossless : whether the answer after raw KV has the same tokens as the colocated one.
    prefill_s, encode_s, wire_s, expand_s, decode_s : seconds of each stage; prefill is shared by all answers to a question.
    first_s : seconds from the prompt to the first token of the decode side.
    wire_bytes, raw_bytes : bytes sent with all headers, and bytes of the KV.
    """

    task: str
    category: str
    id: str
    method: str = ""
    outcome: str = "completed"
    reason: str = ""
    splits: str = ""
    prompt_tokens: int = 0
    whole_tokens: int = 0
    answer_tokens: int = 0
    raw_answer_tokens: int = 0
    score: float = NAN
    raw_score: float = NAN
    nll: float = NAN
    raw_nll: float = NAN
    scored_tokens: int = 0
    agreement: float = NAN
    diverged_at: int = 0
    lossless: bool = False
    mode: str = ""
    wire_bytes: int = 0
    raw_wire_bytes: int = 0
    raw_bytes: int = 0
    distortion: float = NAN
    prefill_s: float = NAN
    encode_s: float = NAN
    wire_s: float = NAN
    expand_s: float = NAN
    decode_s: float = NAN
    first_s: float = NAN
    raw_wire_s: float = NAN
    raw_decode_s: float = NAN
    raw_first_s: float = NAN
    colocated_decode_s: float = NAN
    colocated_first_s: float = NAN
    said: str = ""
    raw_said: str = ""


COLUMNS = tuple(field.name for field in fields(Answer))


@dataclass(frozen=True, slots=True)
class Said:
    """An answer. tokens: its tokens, including the first, which prefill gives. step_s: seconds of the first decode iteration."""

    tokens: list[int]
    decode_s: float
    step_s: float


Method = Callable[[int, int, Importance], Transferred]  # (tokens, first token, importance) -> the transfer of their KV


def answer(asked: Asked, pair: TransferPair, tokenizer: Any, stops: frozenset[int], methods: Mapping[str, Method]) -> list[Answer]:
    """The rows of one question, one for each method. A lack of memory is recorded as a failure; other errors are raised."""
    row = Answer(asked.task.name, asked.task.category, asked.example.id, splits=",".join(asked.example.splits))
    row.prompt_tokens, row.whole_tokens = len(asked.tokens), asked.whole_tokens
    try:
        return _run(row, asked, pair, tokenizer, stops, methods)
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        reason = f"out of memory: {(str(error) or type(error).__name__).splitlines()[0]}"[:300]
        asked_of = (row.task, row.category, row.id)
        return [Answer(*asked_of, name, "failed", reason, row.splits, row.prompt_tokens, row.whole_tokens) for name in methods]


def room(asked: Asked) -> int:
    """Tokens that a pool must hold for a question: the prompt and the longest answer."""
    return len(asked.tokens) + max(asked.most_tokens, 2)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory. On a GPU torch has a class for it; on a CPU only the message says so."""
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in said for text in OUT_OF_MEMORY)


def _run(
    row: Answer, asked: Asked, pair: TransferPair, tokenizer: Any, stops: frozenset[int], methods: Mapping[str, Method]
) -> list[Answer]:
    tokens, task = len(asked.tokens), asked.task
    if task.line_ends:
        stops = stops | {tokenizer.encode("\n", add_special_tokens=False)[-1]}
    reference = tokenizer.encode(asked.example.answers[0], add_special_tokens=False)[: asked.most_tokens]
    table = pair.table[: pair.prefill.layout.blocks_for(room(asked))]
    importance = Importance()
    start_s = time.monotonic()
    first = pair.prefill.prefill(asked.tokens, table, importance)
    row.prefill_s = time.monotonic() - start_s
    if task.line_ends and first in stops:  # such an answer has at least one token
        first = _best_other(pair.prefill, asked.tokens, table, stops)

    def scored(said: Said) -> tuple[str, float]:
        text = tokenizer.decode([t for t in said.tokens if t not in stops], skip_special_tokens=True)
        return text, task.score(text, asked.example.answers, asked.example.classes)

    colocated = say(pair.prefill, SequenceRow(table, tokens), first, asked.most_tokens, stops)
    row.colocated_decode_s, row.colocated_first_s = colocated.decode_s, row.prefill_s + colocated.step_s

    raw = pair.raw(tokens, first)
    row.raw_nll = nll(pair.decode, SequenceRow(table, tokens), reference)
    plain = say(pair.decode, SequenceRow(table, tokens), first, asked.most_tokens, stops)
    row.raw_wire_s, row.raw_wire_bytes, row.raw_decode_s = raw.wire_s, raw.wire_bytes, plain.decode_s
    row.raw_first_s = row.prefill_s + raw.seconds + plain.step_s
    row.lossless = plain.tokens == colocated.tokens
    row.raw_said, row.raw_score = scored(plain)
    row.raw_bytes = tokens * pair.prefill.layout.model.kv_bytes_per_token
    row.scored_tokens, row.raw_answer_tokens = max(0, len(reference) - 1), len(plain.tokens)

    rows = []
    for name, send in methods.items():
        own = replace(row, method=name)
        sent = send(tokens, first, importance)
        own.nll = nll(pair.decode, SequenceRow(table, tokens), reference)
        coded = say(pair.decode, SequenceRow(table, tokens), first, asked.most_tokens, stops)
        own.mode, own.wire_bytes, own.distortion = sent.mode, sent.wire_bytes, sent.distortion
        own.encode_s, own.wire_s, own.expand_s, own.decode_s = sent.encode_s, sent.wire_s, sent.expand_s, coded.decode_s
        own.first_s, own.answer_tokens = row.prefill_s + sent.seconds + coded.step_s, len(coded.tokens)
        own.agreement, own.diverged_at = agreement(coded.tokens, plain.tokens)
        own.said, own.score = scored(coded)
        rows.append(own)
    return rows


def say(engine: Engine, row: SequenceRow, first: int, most: int, stops: frozenset[int]) -> Said:
    """Decode greedily after the KV of `row`, until a stop token or `most` tokens. At least one iteration runs, for step_s."""
    found, start_s, step_s = [first], time.monotonic(), 0.0
    while len(found) < max(most, 2) and (found[-1] not in stops or len(found) == 1):
        found.append(engine.decode([row], [found[-1]])[0])
        step_s = step_s or time.monotonic() - start_s
    if found[0] in stops or most < 2:
        found = found[:1]
    return Said(found, time.monotonic() - start_s, step_s)


def nll(engine: Engine, row: SequenceRow, reference: Sequence[int]) -> float:
    """Mean negative log-likelihood of the reference's tokens after its first; nan if there are none."""
    if len(reference) < 2:
        return NAN
    logits = engine.score(reference[:-1], row).log_softmax(-1)
    return float(-logits[torch.arange(len(reference) - 1), torch.tensor(reference[1:], device=logits.device)].mean())


def agreement(tokens: Sequence[int], others: Sequence[int]) -> tuple[float, int]:
    """(share of positions of the longer one where both have the same token, the first position where they differ)."""
    same = [a == b for a, b in zip(tokens, others, strict=False)]
    longest = max(len(tokens), len(others))
    return sum(same) / longest, next((i for i, equal in enumerate(same) if not equal), longest if len(tokens) == len(others) else len(same))


def _best_other(engine: Engine, tokens: Sequence[int], table: Sequence[int], stops: frozenset[int]) -> int:
    """The likeliest first token that is not a stop token. It computes the last token of the prompt again."""
    logits = engine.score(tokens[-1:], SequenceRow(table, len(tokens) - 1))[0].clone()
    logits[list(stops)] = float("-inf")
    return int(logits.argmax())
